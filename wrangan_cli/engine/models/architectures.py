"""The architectures that a model may have, by the name that `config.json` gives them."""

from collections.abc import Callable
from typing import Any

from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.generator import Generator, GeneratorConfig
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

Architecture = tuple[type[GeneratorConfig], Callable[[Any], Generator]]
"""The class of its settings, and that of the generator made from them."""

_ALL: tuple[Architecture, ...] = (
    (StyleGAN2Config, StyleGAN2Generator),
    (MobileStyleGANConfig, MobileStyleGANGenerator),
)
ARCHITECTURES = {config.architecture: (config, generator) for config, generator in _ALL}
"""By name."""
OLDEST = StyleGAN2Config.architecture
"""The architecture of records that name none: older models had no other."""


def build_generator(config: GeneratorConfig) -> Generator:
    """A new generator with random weights."""
    return ARCHITECTURES[config.architecture][1](config)


def config_record(config: GeneratorConfig) -> dict[str, Any]:
    """The entries of `config.json` for a generator: `architecture`, and its settings as `generator`."""
    return {"architecture": config.architecture, "generator": config.to_json()}


def read_generator_config(record: dict[str, Any]) -> GeneratorConfig:
    """The inverse of `config_record`.

    Raises ValueError for an unknown architecture, and KeyError, TypeError, ValueError or
    AttributeError for a bad field.
    """
    name = record.get("architecture", OLDEST)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}: known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name][0].from_json(record["generator"])
