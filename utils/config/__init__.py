"""Settings: the schema and its loading."""

from utils.config.load import (
    DATASETS,
    DEFAULTS,
    FLAGS,
    LIMITS,
    NOISE_MODES,
    OWN_DATA,
    REAL_NOISE,
    SCRIPTS,
    TYPES,
    Config,
    dump_config,
    load_config,
)

__all__ = [
    "DATASETS",
    "DEFAULTS",
    "FLAGS",
    "LIMITS",
    "NOISE_MODES",
    "OWN_DATA",
    "REAL_NOISE",
    "SCRIPTS",
    "TYPES",
    "Config",
    "dump_config",
    "load_config",
]
