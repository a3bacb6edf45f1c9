"""What `wrangan fetch` can fetch: the weights of bundled models, and other weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrangan_cli.engine.base.carriers import CARRIERS, Carrier, where
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.fetching import OnBytes, fetch_carrier
from wrangan_cli.engine.checkpoints.fetched_models import cached_folder, carrier_for, is_joined, joined_model
from wrangan_cli.engine.models.architectures import read_generator_config
from wrangan_cli.engine.models.folder import bundled_models, read_config


@dataclass(frozen=True)
class Fetchable:
    """One thing that can be fetched."""

    name: str
    carrier: Carrier
    bundled: Path | None
    """The folder of the files that ship for a model; None for other weights."""

    @property
    def kind(self) -> str:
        """`model` or `weights`."""
        return "model" if self.bundled else "weights"

    @property
    def purpose(self) -> str:
        """Its purpose, in a few words."""
        if self.bundled and self.name != self.carrier.name:
            side = read_generator_config(read_config(self.bundled)).resolution
            return f"{self.carrier.name} at {side} px, from the same package"
        return self.carrier.purpose

    @property
    def here(self) -> str | None:
        """Where it is, if usable without a download; otherwise None."""
        if self.bundled and is_joined(self.bundled):
            return str(cached_folder(self.name))
        # Check the content of a model's files: a wrong one would mean a download after all.
        found = where(self.carrier, checked=self.bundled is not None)
        if found is None:
            return None
        place, paths = found
        folder = next(iter(paths.values())).parent
        if self.bundled:
            return f"its weights in {place} ({folder}), joined on first use without a download"
        return f"{place} ({folder})"

    def fetch(self, source: Path | None, overwrite: bool, on_bytes: OnBytes | None) -> list[Path]:
        """Fetch it if missing; returns a model's folder, or the weight files. Raises as `joined_model`
        does."""
        if self.bundled:
            return [joined_model(self.bundled, source, overwrite, on_bytes)]
        return list(fetch_carrier(self.carrier, source, overwrite, on_bytes).values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "purpose": self.purpose,
            "package": self.carrier.requirement,
            "bytes": self.carrier.bytes,
            "sha256": self.carrier.sha256,
            "licence": self.carrier.licence,
            "here": self.here,
        }


def fetchables() -> list[Fetchable]:
    """Everything that can be fetched, models first."""
    return [*_models(), *_weights()]


def find_fetchable(name: str) -> Fetchable:
    """The entry of this name; a UsageError lists the names."""
    known = {item.name: item for item in fetchables()}
    if name not in known:
        raise UsageError(f"nothing to fetch is called {name!r}; there are {', '.join(known)}")
    return known[name]


def _models() -> Iterator[Fetchable]:
    for name, folder in bundled_models().items():
        if carrier := carrier_for(folder):
            yield Fetchable(name, carrier, folder)


def _weights() -> Iterator[Fetchable]:
    models = {item.name for item in _models()}
    for carrier in CARRIERS.values():
        if carrier.name not in models:
            yield Fetchable(carrier.name, carrier, None)
