"""Settings: the schema and its loading."""

from utils.config.load import FLAGS, dump_config, load_config
from utils.config.schema import (
    DATASETS,
    DEFAULTS,
    LIMITS,
    NOISE_MODES,
    OWN_DATA,
    REAL_NOISE,
    SCRIPTS,
    TYPES,
    Config,
    keys_that_affect,
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
    "keys_that_affect",
    "load_config",
]
