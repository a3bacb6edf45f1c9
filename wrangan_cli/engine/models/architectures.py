"""The architectures that a model may have, by the name that `config.json` gives them."""

from collections.abc import Callable
from typing import Any

from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.generator import Generator, GeneratorConfig
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

Architecture = tuple[type[GeneratorConfig], Callable[[Any], Generator]]
"""Its settings, and the generator that is made of them."""

_ALL: tuple[Architecture, ...] = (
    (StyleGAN2Config, StyleGAN2Generator),
    (MobileStyleGANConfig, MobileStyleGANGenerator),
)
ARCHITECTURES = {config.architecture: (config, generator) for config, generator in _ALL}
"""By name."""
OLDEST = StyleGAN2Config.architecture
"""That of a record which names none: models of before had no other."""


def build_generator(config: GeneratorConfig) -> Generator:
    """A new generator with random weights."""
    return ARCHITECTURES[config.architecture][1](config)


def config_record(config: GeneratorConfig) -> dict[str, Any]:
    """What `config.json` says of a generator: its `architecture`, and its settings as `generator`."""
    return {"architecture": config.architecture, "generator": config.to_json()}


def read_generator_config(record: dict[str, Any]) -> GeneratorConfig:
    """The inverse of `config_record`.

    Raises ValueError for an architecture that is not known, and KeyError, TypeError, ValueError or
    AttributeError for a bad field.
    """
    name = record.get("architecture", OLDEST)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}: known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name][0].from_json(record["generator"])
