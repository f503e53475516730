"""Settings: the schema and its loading. Imports no torch."""

# ruff: noqa: F401 (exported)
from utils.config.load import SettingsError, dump_config, load_config
from utils.config.schema import (
    ALIASES,
    DATASETS,
    FLAGS,
    LIMITS,
    NOISE_MODES,
    REAL_NOISE,
    SCRIPTS,
    TYPES,
    Config,
    is_read,
    keys_that_affect,
)
