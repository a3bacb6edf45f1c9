"""Results that a report has already computed, keyed by everything that they depend on."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors

VERSION = 1
"""Part of every key; increased when a measure changes its meaning."""
WRITE_INTERVAL = 5.0
"""Minimum seconds between two writes."""


class Cache:
    """JSON values and feature tensors by kind and key (JSON values that name everything they depend on).

    The values of one kind are in one file, which is written every few seconds and by `flush`. A file
    that cannot be read counts as missing. `computed` lists the kind of every value stored in this run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed: list[str] = []
        self._kinds: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()
        self._written = time.monotonic()

    def get(self, kind: str, key: dict[str, Any]) -> Any:
        """The stored value, None if there is none."""
        return self._values(kind).get(_name(key))

    def put(self, kind: str, key: dict[str, Any], value: Any) -> None:
        """Store a JSON value."""
        self.computed.append(kind)
        self._values(kind)[_name(key)] = value
        self._changed.add(kind)
        if time.monotonic() - self._written > WRITE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write everything that is not on disk yet; FileError or OSError if that fails."""
        for kind in sorted(self._changed):
            with replaced_atomically(self._file(kind)) as temporary:
                temporary.write_text(json.dumps(self._values(kind), indent=0) + "\n")
        self._changed.clear()
        self._written = time.monotonic()

    def _values(self, kind: str) -> dict[str, Any]:
        if kind not in self._kinds:
            self._kinds[kind] = {}
            with suppress(OSError, ValueError):
                stored = json.loads(self._file(kind).read_text())
                if isinstance(stored, dict):
                    self._kinds[kind] = stored
        return self._kinds[kind]

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}.json"

    def get_or_make(self, kind: str, key: dict[str, Any], make: Callable[[], Any]) -> Any:
        """The stored value; if there is none, it is made and stored."""
        value = self.get(kind, key)
        if value is None:
            value = make()
            self.put(kind, key, value)
        return value

    def features(self, kind: str, key: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
        """`get_or_make` for features (N, F), which are stored in float16 and returned in float32."""
        path = self.folder / kind / f"{_name(key)}.safetensors"
        with suppress(FileError, KeyError):
            return read_tensors(path)[0]["features"].float()
        features = make().half()
        write_tensors(path, {"features": features}, {"kind": "features", "key": key})
        self.computed.append(kind)
        return features.to(torch.float32)


def _name(key: dict[str, Any]) -> str:
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
