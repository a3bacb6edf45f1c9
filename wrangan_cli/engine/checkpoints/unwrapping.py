"""Find a network in a file, however it is wrapped.

Trainers put a generator into a dict, a dict into a dict, all names behind a prefix, or pickle the module
itself, alone or within `DataParallel`. So a file is flattened into tensors by path (keys of dicts, parts
of names and modules alike), and a network is located by the names that only such a network has.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints.numpy_stand_ins import StoredArray
from wrangan_cli.engine.checkpoints.records import NotConvertible, brief, listed
from wrangan_cli.engine.checkpoints.stand_ins import StoredObject, StoredTensor

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Parts of names to ignore: those of `DataParallel` (and `AveragedModel`), and of `torch.compile`."""
ENCODERS = ("encoder", "hypernet")
"""Keys of the trained network in an encoder's file."""
ENTRIES_AT_MOST = 100_000
"""Maximum number of entries in a file; published ones have a few thousand."""
_ENOUGH = 2
"""Number of characteristic names that identify a network."""

Way = tuple[str, ...]
V = TypeVar("V")

ROSINALITY, NVIDIA = "rosinality", "nvidia"
_GENERATORS = {
    ROSINALITY: re.compile(
        r"(?:^|\.)(?:style\.\d+\.(?:weight|bias)|input\.input|noises\.noise_\d+"
        r"|(?:conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.(?:weight|modulation\.(?:weight|bias))"
        r"|(?:conv1|convs\.\d+)\.(?:noise\.weight|activate\.bias)|to_rgb1\.bias|to_rgbs\.\d+\.bias)$"
    ),
    NVIDIA: re.compile(
        r"(?:^|\.)(?:mapping\.(?:(?:fc\d+|embed)\.(?:weight|bias)|w_avg)|synthesis\.(?:b\d+|input|L\d+_\w+)\..+)$"
    ),
}
_DISCRIMINATORS = {
    ROSINALITY: re.compile(
        r"(?:^|\.)(?:final_(?:conv|linear)\.\d\.(?:weight|bias)"
        r"|convs\.\d+\.(?:(?:conv[12]|skip)\.)?\d\.(?:weight|bias))$"
    ),
    NVIDIA: re.compile(r"(?:^|\.)(?:b\d+\.fromrgb|b4\.(?:conv|fc|out))\.(?:weight|bias)$"),
}
_BESIDE = ("latent_avg", "n_averaged")
"""Tensors that may be among those of a generator."""
_AVERAGE = re.compile(r"(?:^|_)ema(?:_|$)|^gs$|averaged?$", re.I)


@dataclass(frozen=True)
class Place:
    """The location of a network."""

    family: str
    """The naming of its tensors: ROSINALITY or NVIDIA."""
    way: Way
    """The keys that lead to it."""

    @property
    def label(self) -> str:
        """Its name in messages."""
        return ".".join(self.way) or "the network"

    @property
    def average(self) -> bool:
        """Whether a key marks it as the moving average."""
        return any(_AVERAGE.search(part) for part in self.way)

    @property
    def raw(self) -> bool:
        """Whether its key marks it as the network as trained."""
        return self.way[-1:] in (("g",), ("G",))


@dataclass(frozen=True)
class Network:
    """One network of a file."""

    place: Place
    tensors: dict[str, Tensor]
    attributes: dict[str, dict[str, Any]]
    """Attributes of its modules, by path ("" is the network); empty if the file has a state dict."""

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.place.label


@dataclass
class Contents:
    """A file's contents by path; a path is a tuple of keys and parts of names."""

    keys: list[str] = field(default_factory=list)
    """Top-level keys."""
    tensors: dict[Way, Tensor] = field(default_factory=dict)
    values: dict[Way, Any] = field(default_factory=dict)
    """Everything except tensors: settings, numbers, text."""
    attributes: dict[Way, dict[str, Any]] = field(default_factory=dict)
    """Attributes of modules."""
    problems: dict[Way, str] = field(default_factory=dict)
    """Problems by place, which matter only if a network is there."""

    def near(self, way: Way, name: str) -> Any:
        """The tensor or value of a name, at the place itself or the nearest enclosing one; None if absent."""
        for path in _around(way, name):
            if path in self.tensors or path in self.values:
                return self.tensors.get(path, self.values.get(path))
        return None

    def settings(self, way: Way, name: str) -> dict[str, Any] | None:
        """Plain values of the dict or namespace of a name, likewise; None if absent."""
        for path in _around(way, name):
            found = {".".join(rest): value for rest, value in _below(self.values, path)}
            if found and "" not in found:
                return found
        return None

    def part(self, way: Way) -> dict[str, Tensor]:
        """Tensors below a path, by the rest of their path.

        Raises NotConvertible if something there is neither a tensor nor a module.
        """
        for path, text in self.problems.items():
            if path[: len(way)] == way:
                raise NotConvertible(f"{'.'.join(path) or 'the network'} {text}")
        return {".".join(rest): tensor for rest, tensor in _below(self.tensors, way)}

    def part_near(self, way: Way, name: str) -> dict[str, Tensor]:
        """`part` of the nearest dict of a name that has tensors; empty if absent."""
        return next((found for path in _around(way, name) if (found := self.part(path))), {})

    def ways_to(self, *names: str) -> list[Way]:
        """Paths that lead to one of these parts of a name (`encoder`), shortest first."""
        found = {
            path[: min(path.index(name) for name in names if name in path)]
            for path in self.tensors
            if any(name in path for name in names)
        }
        return sorted(found, key=lambda way: (len(way), way))


def contents_of(data: object) -> Contents:
    """Flatten the data of a file; NotConvertible if it has more entries than any network."""
    contents = Contents()
    if isinstance(data, dict) and not _is_module(data):
        contents.keys = [str(key) for key in data]
    _Walk(contents).visit((), data, frozenset())
    return contents


def generator_of(contents: Contents, raw: bool) -> Network:
    """The moving average, or the only generator; with `raw` the one as trained.

    Raises NotConvertible if there is none, none of this kind, or several.
    """
    found = _places(contents, _GENERATORS)
    if not found:
        for path, value in contents.values.items():
            if len(path) == 1 and _AVERAGE.search(path[0]):
                raise NotConvertible(f"{path[0]} is not a state dict but {brief(value)}")
        keys = listed(contents.keys) or "no named entries"
        encoder = "; a trained encoder is converted with --model" if contents.ways_to(*ENCODERS) else ""
        raise NotConvertible(f"holds no StyleGAN2 generator; the file has {keys}{encoder}")
    averages = [place for place in found if place.average]
    others = [place for place in found if not place.average]
    trained = [place for place in others if place.raw]
    if raw:
        chosen = trained or (others if averages else [])
    else:
        chosen = averages or [place for place in others if not place.raw]
    labels = listed(place.label for place in found)
    if not chosen and raw:
        raise NotConvertible(f"lacks a generator as trained (g, G); it has only {labels}")
    if not chosen:
        raise NotConvertible(
            f"lacks the moving average (g_ema, G_ema): --weights raw takes {labels}, as trained"
        )
    if len(chosen) > 1:
        raise NotConvertible(f"holds several generators: {listed(place.label for place in chosen)}")
    return _network(contents, chosen[0], found + _places(contents, _DISCRIMINATORS))


def discriminator_of(contents: Contents, generator: Network) -> Network | None:
    """The discriminator of a generator; None if absent. Raises NotConvertible if there are several."""
    family = generator.place.family
    found = _places(contents, {family: _DISCRIMINATORS[family]})
    plain = [place for place in found if place.way[-1:] in (("d",), ("D",))]
    chosen = plain or [place for place in found if not place.average] or found
    if len(chosen) > 1:
        raise NotConvertible(f"there are several: {listed(place.label for place in chosen)}")
    return _network(contents, chosen[0], found + _places(contents, _GENERATORS)) if chosen else None


def _places(contents: Contents, families: Mapping[str, re.Pattern[str]]) -> list[Place]:
    counts: Counter[Place] = Counter()
    for path in contents.tensors:
        name = ".".join(path)
        for family, own in families.items():
            match = own.search(name)
            if match:
                depth = name[: match.start()].count(".") + 1 if match.start() else 0
                counts[Place(family, path[:depth])] += 1
    return [place for place, count in counts.items() if count >= _ENOUGH]


def _network(contents: Contents, place: Place, every: list[Place]) -> Network:
    """The network at a place, without other networks inside it."""
    way = place.way
    within = [".".join(other.way[len(way) :]) + "." for other in every if _is_below(other.way, way)]
    own = (_GENERATORS[place.family], _DISCRIMINATORS[place.family])
    for rest, value in _below(contents.values, way):
        if value is not None and any(names.fullmatch(".".join(rest)) for names in own):
            raise NotConvertible(f"{place.label}: {'.'.join(rest)} is not a tensor but {brief(value)}")
    tensors = {
        name: tensor
        for name, tensor in contents.part(way).items()
        if name not in _BESIDE and not name.startswith(tuple(within))
    }
    attributes = {".".join(rest): values for rest, values in _below(contents.attributes, way)}
    return Network(place, tensors, attributes)


def _is_below(path: Way, way: Way) -> bool:
    return len(path) > len(way) and path[: len(way)] == way


def _around(way: Way, name: str) -> Iterator[Way]:
    for depth in range(len(way), -1, -1):
        yield (*way[:depth], name)


def _below(entries: Mapping[Way, V], way: Way) -> Iterator[tuple[Way, V]]:
    return ((path[len(way) :], value) for path, value in entries.items() if path[: len(way)] == way)


def _is_module(value: object) -> bool:
    return isinstance(value, StoredObject) and isinstance(value.get("_modules"), dict)


class _Walk:
    """Fills `Contents`."""

    def __init__(self, contents: Contents) -> None:
        self.contents, self.entries = contents, 0

    def visit(self, path: Way, value: Any, above: frozenset[int]) -> None:
        self.entries += 1
        if self.entries > ENTRIES_AT_MOST:
            raise NotConvertible(f"has more than {ENTRIES_AT_MOST:,} entries")
        if id(value) in above:  # a hostile file may put a dict into itself
            return
        above = above | {id(value)}
        if isinstance(value, StoredTensor | Tensor | StoredArray):
            self._keep(path, value)
        elif _is_module(value):
            self._module(path, value, set())
        elif isinstance(value, StoredObject) and value.class_name.startswith("omegaconf."):
            self.visit(path, value.get("_content", value.get("_val")), above)
        elif isinstance(value, dict):
            for key, item in value.items():
                self.visit(_longer(path, key), item, above)
        else:
            self.contents.values[path] = value
            if isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if isinstance(item, dict | StoredTensor | Tensor):
                        self.visit(_longer(path, index), item, above)

    def _keep(self, path: Way, value: StoredTensor | Tensor | StoredArray) -> None:
        if isinstance(value, StoredArray):
            array = value.value
            if array is None or array.dtype.kind not in "fiub":
                self.contents.values[path] = None if array is None else array.tolist()
                return
            # A copy in the byte order of this machine, which torch requires.
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
        else:
            tensor = value.value if isinstance(value, StoredTensor) else value
        if path in self.contents.tensors:
            self.contents.problems[path] = "is there twice, with and without a wrapper's name"
        self.contents.tensors[path] = tensor

    def _module(self, path: Way, module: StoredObject, seen: set[int]) -> None:
        contents = self.contents
        # A hostile file may make a module its own child.
        if id(module) in seen:
            contents.problems[path] = "is in the network twice"
            return
        seen.add(id(module))
        settings = {str(name): value for name, value in module.items() if str(name)[:1] != "_"}
        contents.attributes[path] = contents.attributes.get(path, {}) | settings
        for group in ("_parameters", "_buffers"):
            for name, value in (module.get(group) or {}).items():
                if isinstance(value, StoredTensor | Tensor):
                    self._keep(_longer(path, name), value)
                elif value is not None:
                    contents.problems[_longer(path, name)] = "is not a tensor"
        for name, child in module["_modules"].items():
            if _is_module(child):
                self._module(_longer(path, name), child, seen)
            elif child is not None:
                contents.problems[_longer(path, name)] = "is not a module of a network"
        # pSp keeps these two as plain attributes.
        for name in ("latent_avg", "opts"):
            if module.get(name) is not None:
                self.visit(_longer(path, name), module[name], frozenset())


def _longer(path: Way, key: object) -> Way:
    return (*path, *(part for part in str(key).split(".") if part not in WRAPPERS))
