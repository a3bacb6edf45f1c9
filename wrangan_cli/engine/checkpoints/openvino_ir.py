"""OpenVINO's intermediate representation, an XML and a BIN, read as data: constants and a graph.

Nothing is computed, and OpenVINO is not needed. Every size, offset and edge is checked first, so that
a broken file gives a FileError and no array reaches beyond its bytes.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError

VERSIONS = ("10", "11")
"""Versions of the format; what is read here is the same in both."""

ELEMENT_TYPES = {
    "f16": "<f2",
    "f32": "<f4",
    "f64": "<f8",
    "i8": "<i1",
    "i32": "<i4",
    "i64": "<i8",
    "u8": "<u1",
}
"""NumPy's names of the constants' types, all little-endian."""


@dataclass(frozen=True)
class Source:
    """The source of an input."""

    node: str
    """Id of the node."""
    port: int
    """Which of the node's outputs, counted from 0."""


@dataclass(frozen=True)
class Node:
    """One operation, or a constant."""

    id: str
    name: str
    """For a constant that was a weight, the name of the weight; otherwise made up by the converter."""
    type: str
    """Such as `Const`, `Convolution`."""
    attributes: Mapping[str, str]
    inputs: tuple[Source, ...]
    """In the order of the ports."""


@dataclass(frozen=True)
class Graph:
    """A network as its files describe it."""

    path: Path
    """The XML, for messages."""
    nodes: Mapping[str, Node]
    """By id, in the file's order."""
    users: Mapping[str, tuple[Node, ...]]
    """Id of a node → the nodes that use one of its outputs."""
    contents: bytes
    """The whole BIN."""

    def constants(self) -> Iterator[Node]:
        """All nodes that are constants."""
        return (node for node in self.nodes.values() if node.type == "Const")

    def tensor(self, constant: Node) -> Tensor:
        """A copy of a constant's values, with its type and shape."""
        shape, kind, offset, size = _location(self.path, constant)
        values = np.frombuffer(self.contents[offset : offset + size], dtype=ELEMENT_TYPES[kind])
        native = values.astype(values.dtype.newbyteorder("="))
        return torch.from_numpy(native.reshape(shape))


def read_graph(path: Path, description: bytes, contents: bytes) -> Graph:
    """The graph of an XML (`description`) and the BIN that belongs to it (`contents`).

    path: that of the XML, only for messages. Raises FileError if the two are broken or do not match.
    """
    root = _parsed(path, description)
    if root.tag != "net" or root.get("version") not in VERSIONS:
        raise FileError(path, f"not an OpenVINO representation of version {' or '.join(VERSIONS)}")
    layers, edges = root.find("layers"), root.find("edges")
    if layers is None or edges is None:
        raise FileError(path, "has no layers or no edges")
    elements: dict[str, ElementTree.Element] = {}
    for layer in layers:
        number = layer.get("id")
        if not number or not layer.get("type") or layer.get("name") is None:
            raise FileError(path, "has a layer without id, name or type")
        if number in elements:
            raise FileError(path, f"has two layers with the id {number}")
        elements[number] = layer
    inputs = _inputs(path, elements, edges)
    try:
        TopologicalSorter({n: [source.node for source in some] for n, some in inputs.items()}).prepare()
    except CycleError as error:
        raise FileError(path, "has edges that form a cycle") from error
    nodes = {number: _node(element, inputs[number]) for number, element in elements.items()}
    users: dict[str, list[Node]] = {number: [] for number in nodes}
    for node in nodes.values():
        for number in dict.fromkeys(source.node for source in node.inputs):
            users[number].append(node)
    graph = Graph(path, nodes, {number: tuple(some) for number, some in users.items()}, contents)
    for constant in graph.constants():
        _check_location(path, constant, len(contents))
    return graph


def _parsed(path: Path, description: bytes) -> ElementTree.Element:
    # A DOCTYPE may define entities that expand without limit, or name other files; no IR has one. In an
    # encoding with two bytes per character the word would not be found, so these are rejected too.
    if b"\0" in description or b"<!DOCTYPE" in description:
        raise FileError(path, "an XML with a DOCTYPE or in an unknown encoding: not read")
    try:
        return ElementTree.fromstring(description)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise FileError(path, f"not a readable XML ({error})") from error


def _inputs(
    path: Path, elements: Mapping[str, ElementTree.Element], edges: ElementTree.Element
) -> dict[str, tuple[Source, ...]]:
    """The inputs of every layer in the order of their ports."""
    outputs = {number: _ports(path, element, "output") for number, element in elements.items()}
    given: dict[str, dict[int, Source]] = {number: {} for number in elements}
    for edge in edges:
        start, end = edge.get("from-layer", ""), edge.get("to-layer", "")
        from_port = _whole_number(path, edge.get("from-port"))
        to_port = _whole_number(path, edge.get("to-port"))
        if start not in elements or end not in elements:
            raise FileError(path, f"has an edge from layer {start!r} to {end!r}, which do not both exist")
        if from_port not in outputs[start]:
            raise FileError(
                path, f"has an edge from output {from_port} of layer {start}, which does not exist"
            )
        if to_port in given[end]:
            raise FileError(path, f"has two edges to input {to_port} of layer {end}")
        given[end][to_port] = Source(start, outputs[start].index(from_port))
    for number, element in elements.items():
        if sorted(given[number]) != sorted(_ports(path, element, "input")):
            raise FileError(path, f"has a layer {number} whose inputs do not match the edges that lead to it")
    return {number: tuple(some[port] for port in sorted(some)) for number, some in given.items()}


def _ports(path: Path, element: ElementTree.Element, side: str) -> list[int]:
    return [_whole_number(path, port.get("id")) for port in element.findall(f"{side}/port")]


def _node(element: ElementTree.Element, inputs: tuple[Source, ...]) -> Node:
    data = element.find("data")
    return Node(
        id=element.attrib["id"],
        name=element.attrib["name"],
        type=element.attrib["type"],
        attributes=dict(data.attrib) if data is not None else {},
        inputs=inputs,
    )


def _check_location(path: Path, constant: Node, available: int) -> None:
    shape, kind, offset, size = _location(path, constant)
    wanted = math.prod(shape) * np.dtype(ELEMENT_TYPES[kind]).itemsize
    if size != wanted:
        raise FileError(
            path, f"constant {constant.name} of {list(shape)} {kind} has {size} bytes, expected {wanted}"
        )
    if offset + size > available:
        raise FileError(
            path, f"constant {constant.name} ends at byte {offset + size}, but the BIN has {available}"
        )


def _location(path: Path, constant: Node) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, element type, offset and size in bytes, according to the XML."""
    about = constant.attributes
    kind = about.get("element_type", "")
    if kind not in ELEMENT_TYPES:
        raise FileError(path, f"constant {constant.name} has the unknown element type {kind!r}")
    lengths = about.get("shape", "").split(",")
    shape = tuple(_whole_number(path, length) for length in lengths if length.strip())
    offset, size = (_whole_number(path, about.get(name)) for name in ("offset", "size"))
    return shape, kind, offset, size


def _whole_number(path: Path, text: str | None) -> int:
    """A whole number, 0 or more."""
    digits = (text or "").strip()
    # int() would also accept signs, underscores and the digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise FileError(path, f"has {text!r} in place of a whole number")
    return int(digits)
