"""Settings: the schema and its loading. Imports no torch."""

from utils.config.load import SettingsError, dump_config, load_config
from utils.config.schema import (
    ALIASES,
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
    is_read,
    keys_that_affect,
)

__all__ = [
    "ALIASES",
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
    "SettingsError",
    "dump_config",
    "is_read",
    "keys_that_affect",
    "load_config",
]
