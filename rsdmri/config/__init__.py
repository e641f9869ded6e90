"""Configuration: one frozen tree of settings, from defaults, a TOML recipe and ``key=value`` overrides.

Unknown keys are refused with the nearest name; the resolved tree is written into every run and checkpoint.
"""

from rsdmri.config.inputs import PRESETS, CorruptionConfig, NetworkConfig
from rsdmri.config.section import Level, Section
from rsdmri.config.stages import PosteriorConfig, TeacherConfig
from rsdmri.config.tree import Config, config_from_dict, load_config, parse_value, validated

__all__ = [
    "PRESETS",
    "Config",
    "CorruptionConfig",
    "Level",
    "NetworkConfig",
    "PosteriorConfig",
    "Section",
    "TeacherConfig",
    "config_from_dict",
    "load_config",
    "parse_value",
    "validated",
]
