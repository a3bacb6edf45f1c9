"""MobileStyleGAN's weights out of OpenVINO's representation of its two networks.

The converter kept the names of most weights; what it folded (a convolution's weights with its
demodulation, a noise map with its strength) has lost its name and is found by following the edges
from what has one. The way there is checked node by node: a network of another form is refused, and
no tensor is taken for another.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints.openvino_ir import Graph, Node, Source
from wrangan_cli.engine.errors import FileError

SLOPE = 0.2
"""Of the leaky ReLUs, which the network applies itself."""
TOLERANCE = 1e-4
"""How far the representation's constants may lie from those that the network computes with."""
HALF_ROOT = math.sqrt(0.5)


def state_dict(mapping: Graph, synthesis: Graph) -> dict[str, Tensor]:
    """The tensors of a `MobileStyleGANGenerator` by name, float32.

    All factors of equalised learning rates are in the weights; the constant of a layer's style,
    1/√(in · k²), is not. Raises FileError for networks of another form.
    """
    tensors = {**mapping_weights(mapping), **synthesis_weights(synthesis)}
    style_dim = tensors["style.1.weight"].shape[0]
    if tensors["conv1.modulation.weight"].shape[1] != style_dim:
        raise FileError(synthesis.path, f"takes w of another length than {mapping.path} gives ({style_dim})")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(synthesis.path, f"{name} has values that are not finite")
    return tensors


def mapping_weights(graph: Graph) -> dict[str, Tensor]:
    """`style.<n>.weight` (out, in) and `style.<n>.bias` (out,), n from 1 in order of use."""
    walk = _Walk(graph)
    found: list[tuple[Tensor, Tensor]] = []
    node = walk.result()
    # From the end to the start: w = √2 · leaky ReLU(x · Wᵀ + b), again and again.
    while (parts := walk.constant_operand(node, "Multiply")) is not None:
        node, gain = parts
        walk.expect_near(gain, math.sqrt(2), "the mapping's gain")
        node = walk.leaky_relu(node)
        product, shift = walk.operands(node, "Add")
        bias = walk.constant(walk.input(shift, "Reshape", 0) if shift.type == "Reshape" else shift)
        weight = walk.constant(walk.input(product, "MatMul", 1))
        walk.check_transposed(product)
        found.append((weight, bias.flatten()))
        node = walk.input(product, "MatMul", 0)
    walk.check_normalized(node)
    if not found:
        raise FileError(graph.path, "holds no mapping network")
    tensors: dict[str, Tensor] = {}
    for number, (weight, bias) in enumerate(reversed(found), 1):
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or bias.shape != weight.shape[:1]:
            raise FileError(graph.path, f"mapping layer {number}: shapes that do not fit each other")
        if weight.shape != found[0][0].shape:
            raise FileError(graph.path, f"mapping layer {number} has another width than the last")
        tensors[f"style.{number}.weight"] = weight
        tensors[f"style.{number}.bias"] = bias
    return tensors


def synthesis_weights(graph: Graph) -> dict[str, Tensor]:
    """All other tensors: the constant, convolutions with style, noise and bias, `up`, `to_img`."""
    walk = _Walk(graph)
    blocks = walk.blocks()
    constant = walk.named("m.input.input")
    if constant.ndim != 4 or constant.shape[0] != 1 or constant.shape[2] != constant.shape[3]:
        raise FileError(graph.path, f"its constant input has the shape {list(constant.shape)}")
    tensors = {"input.input": constant}
    first = _convolution(walk, "conv1", side=constant.shape[2], number=0)
    walk.check_starts_at(first.start, "m.input.input")
    tensors |= first.tensors
    end, side = first.end, constant.shape[2]
    for k in range(blocks):
        side *= 2
        up, image = _up(walk, f"layers.{k}.up", end)
        one = _convolution(walk, f"layers.{k}.conv1", side, 2 * k + 1)
        two = _convolution(walk, f"layers.{k}.conv2", side, 2 * k + 2)
        walk.check_same(one.start, image, f"layers.{k}.conv1")
        walk.check_same(two.start, one.end, f"layers.{k}.conv2")
        tensors |= {**up, **one.tensors, **two.tensors}
        end = two.end
    tensors |= _to_img(walk, f"layers.{blocks - 1}.to_img", end)
    return tensors


@dataclass(frozen=True)
class _Convolution:
    tensors: dict[str, Tensor]
    start: Node
    """What it takes, before the style is multiplied in."""
    end: Node
    """What it gives."""


def _convolution(walk: "_Walk", name: str, side: int, number: int) -> _Convolution:
    """A convolution from its names `m.<name>.…`: of a block separable, of the start dense."""
    style = walk.style(name)
    shifted = walk.only_user(walk.find(f"m.{name}.bias"), "Add")
    noisy = walk.other_operand(shifted, f"m.{name}.bias")
    convolved, noise = walk.operands(noisy, "Add")
    weight = walk.constant(walk.input(convolved, "Convolution", 1))
    before = walk.input(convolved, "Convolution", 0)
    tensors: dict[str, Tensor] = {}
    if before.type == "GroupConvolution":
        depthwise = walk.constant(walk.input(before, "GroupConvolution", 1))
        walk.check_shape(f"{name}.depthwise", depthwise, (style.width, 1, 1, 3, 3))
        walk.check_shape(f"{name}.pointwise", weight, (weight.shape[0], style.width, 1, 1))
        walk.check_padding(before, "1, 1")
        walk.check_padding(convolved, "0, 0")
        tensors[f"{name}.depthwise.weight"] = depthwise[:, :, 0]
        tensors[f"{name}.pointwise.weight"] = weight
        before = walk.input(before, "GroupConvolution", 0)
    else:
        walk.check_shape(f"{name}.dense", weight, (weight.shape[0], style.width, 3, 3))
        walk.check_padding(convolved, "1, 1")
        tensors[f"{name}.dense.weight"] = weight
    start = walk.times_style(before, style.node)
    walk.expect_near(style.factor, 1 / math.sqrt(style.width * 9), f"{name}: the constant of its style")
    values = walk.constant(noise)
    walk.check_shape(f"{name}.noise", values, (1, 1, side, side))
    strength, noise_map = split_noise(values)
    bias = walk.named(f"m.{name}.bias")
    walk.check_shape(f"{name}.bias", bias, (1, weight.shape[0], 1, 1))
    tensors |= {
        f"{name}.modulation.weight": style.weight,
        f"{name}.modulation.bias": style.bias,
        f"{name}.noise.weight": strength,
        f"{name}.bias": bias.flatten(),
        f"noises.noise_{number}": noise_map,
    }
    return _Convolution(tensors, start, walk.only_leaky_relu(shifted))


def _up(walk: "_Walk", name: str, before: Node) -> tuple[dict[str, Tensor], Node]:
    """The style of an `up` and the end of its inverse Haar transform."""
    style = walk.style(name)
    if style.factor is not None:
        raise FileError(walk.graph.path, f"{name}: its style has a factor, which was not expected")
    product = walk.only_user(style.node, "Multiply")
    walk.check_same(walk.times_style(product, style.node), before, name)
    image = walk.haar_end(product, style.width)
    return {f"{name}.modulation.weight": style.weight, f"{name}.modulation.bias": style.bias}, image


def _to_img(walk: "_Walk", name: str, before: Node) -> dict[str, Tensor]:
    style = walk.style(name)
    weight, bias = walk.named(f"m.{name}.conv.weight"), walk.named(f"m.{name}.bias")
    walk.check_shape(f"{name}.conv", weight, (weight.shape[0], style.width, 1, 1))
    walk.check_shape(f"{name}.bias", bias, (1, weight.shape[0], 1, 1))
    walk.expect_near(style.factor, 1 / math.sqrt(style.width), f"{name}: the constant of its style")
    shifted = walk.only_user(walk.find(f"m.{name}.bias"), "Add")
    convolved = walk.other_operand(shifted, f"m.{name}.bias")
    start = walk.times_style(walk.input(convolved, "Convolution", 0), style.node)
    walk.check_same(start, before, name)
    walk.check_same(walk.haar_end(shifted, weight.shape[0]), walk.result(), name)
    return {
        "to_img.modulation.weight": style.weight,
        "to_img.modulation.bias": style.bias,
        "to_img.conv.weight": weight,
        "to_img.bias": bias.flatten(),
    }


def split_noise(values: Tensor) -> tuple[Tensor, Tensor]:
    """A map with its strength multiplied in → the strength (1,), and the map with mean square 1.

    A map of zeros: strength 0 and zeros. The sum is exact, so that every machine splits alike.
    """
    squares = (value * value for value in values.double().flatten().tolist())
    strength = torch.tensor([math.sqrt(math.fsum(squares) / values.numel())], dtype=torch.float32)
    return strength, values / strength if strength > 0 else torch.zeros_like(values)


@dataclass(frozen=True)
class _Style:
    weight: Tensor
    """(width, style_dim)"""
    bias: Tensor
    """(width,)"""
    factor: Node | None
    """The constant that it is multiplied with, if with one."""
    node: Node
    """Its end, (1, width, 1, 1)."""

    @property
    def width(self) -> int:
        return self.weight.shape[0]


class _Walk:
    """Steps through a graph; each raises FileError where the graph has another form."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._named = {node.name: node for node in graph.constants() if node.name.startswith("m.")}

    # Where things are

    def find(self, name: str) -> Node:
        """The constant of this name."""
        if name not in self._named:
            raise FileError(self.graph.path, f"lacks the constant {name}: not MobileStyleGAN's network")
        return self._named[name]

    def named(self, name: str) -> Tensor:
        """The values of the constant of this name."""
        return self.constant(self.find(name))

    def blocks(self) -> int:
        """How many blocks there are; they must be numbered from 0."""
        matches = [re.fullmatch(r"m\.layers\.(\d{1,2})\.conv1\.bias", name) for name in self._named]
        numbers = sorted(int(match[1]) for match in matches if match)
        if not numbers or numbers != list(range(len(numbers))):
            raise FileError(self.graph.path, f"has the blocks {numbers}: not MobileStyleGAN's network")
        return len(numbers)

    def result(self) -> Node:
        """What the network gives."""
        results = [node for node in self.graph.nodes.values() if node.type == "Result"]
        if len(results) != 1:
            raise FileError(self.graph.path, f"gives {len(results)} results, expected one")
        return self.input(results[0], "Result", 0)

    def style(self, name: str) -> _Style:
        """The style of a layer: an affine function of w, brought to (1, width, 1, 1), often × a constant."""
        # `up` has its modulation itself, the others in their convolution.
        inner = "" if name.endswith(".up") else ".conv"
        weight = self.named(f"m.{name}{inner}.modulation.weight")
        bias = self.find(f"m.{name}{inner}.modulation.bias")
        if weight.ndim != 2:
            raise FileError(self.graph.path, f"{name}.modulation.weight has the shape {list(weight.shape)}")
        self.check_shape(f"{name}.modulation.bias", self.constant(bias), (1, weight.shape[0]))
        affine = self.only_user(bias, "Add")
        product = self.other_operand(affine, bias.name)
        self.check_transposed(product)
        if self.input(product, "MatMul", 1) is not self.find(f"m.{name}{inner}.modulation.weight"):
            raise self._unlike(product, f"{name}: another weight in its modulation")
        if self.input(product, "MatMul", 0).type != "Parameter":
            raise self._unlike(product, f"{name}: a style of something else than w")
        values = self.constant(bias).flatten()
        shaped = self.only_user(affine, "Reshape")
        scaled = self.constant_operand(self.only_user(shaped, "Multiply"), "Multiply")
        if scaled is None:
            return _Style(weight, values, None, shaped)
        return _Style(weight, values, scaled[1], self.only_user(shaped, "Multiply"))

    # Steps

    def input(self, node: Node, kind: str, number: int) -> Node:
        """Input `number` of a node that must be of this kind."""
        if node.type != kind or number >= len(node.inputs):
            raise self._unlike(node, f"expected {kind} with an input {number}")
        return self.graph.nodes[node.inputs[number].node]

    def only_user(self, node: Node, kind: str) -> Node:
        """The one node of this kind that takes what `node` gives."""
        users = [user for user in self.graph.users[node.id] if user.type == kind]
        if len(users) != 1:
            raise self._unlike(node, f"expected one {kind} after it, found {len(users)}")
        return users[0]

    def operands(self, node: Node, kind: str) -> tuple[Node, Node]:
        """Both inputs of a node of this kind; a constant, or what is made of constants alone, last."""
        first, second = self.input(node, kind, 0), self.input(node, kind, 1)
        return (second, first) if first.type == "Const" else (first, second)

    def constant_operand(self, node: Node, kind: str) -> tuple[Node, Node] | None:
        """The other input and the constant one; None if this is no node of that kind with a constant."""
        if node.type != kind:
            return None
        other, constant = self.operands(node, kind)
        return (other, constant) if constant.type == "Const" else None

    def other_operand(self, node: Node, name: str) -> Node:
        """Of a sum the input that is not the constant of this name."""
        first, second = self.operands(node, "Add")
        if second.name != name:
            raise self._unlike(node, f"expected a sum with {name}")
        return first

    def times_style(self, node: Node, style: Node) -> Node:
        """What is multiplied with this style in `node`."""
        both = [self.input(node, "Multiply", 0), self.input(node, "Multiply", 1)]
        if style not in both:
            raise self._unlike(node, f"expected a product with {style.name}")
        return both[1] if both[0] is style else both[0]

    def leaky_relu(self, node: Node) -> Node:
        """What a leaky ReLU of slope 0.2 is applied to in `node`."""
        self.expect_near(self.input(node, "PReLU", 1), SLOPE, "the slope of a leaky ReLU")
        return self.input(node, "PReLU", 0)

    def only_leaky_relu(self, node: Node) -> Node:
        """The leaky ReLU that is applied to what `node` gives."""
        user = self.only_user(node, "PReLU")
        self.leaky_relu(user)
        return user

    def haar_end(self, node: Node, channels: int) -> Node:
        """The end of the inverse Haar transform of what `node` gives, checked tap by tap.

        Of the channels the first quarter is the low band; three neighbouring ones of the others are
        the high bands along the rows' direction, along the columns, and of both.
        """
        split = self.only_user(node, "VariadicSplit")
        parts = self.constant(self.input(split, "VariadicSplit", 2)).tolist()
        if channels % 4 or parts != [channels // 4, 3 * channels // 4]:
            raise self._unlike(split, f"splits {channels} channels into {parts}")
        low = self._taps(self._user_of(split, 0, "GroupConvolutionBackpropData"), "rows", 1)
        bands = self._user_of(split, 1, "Reshape")
        bands = self.only_user(bands, "VariadicSplit")
        squeezed = [self._user_of(bands, number, "Squeeze") for number in range(3)]
        vertical, horizontal, both = (
            self._taps(self.only_user(band, "GroupConvolutionBackpropData"), "rows", sign)
            for band, sign in zip(squeezed, (-1, 1, -1), strict=True)
        )
        columns = [
            self._taps(self.only_user(total, "GroupConvolutionBackpropData"), "columns", sign)
            for total, sign in ((self._sum(low, vertical), 1), (self._sum(horizontal, both), -1))
        ]
        return self._sum(*columns)

    def _user_of(self, node: Node, port: int, kind: str) -> Node:
        """The one node of this kind that takes output `port` of `node`."""
        source = Source(node.id, port)
        users = [user for user in self.graph.users[node.id] if user.type == kind and source in user.inputs]
        if len(users) != 1:
            raise self._unlike(node, f"expected one {kind} after its output {port}, found {len(users)}")
        return users[0]

    def _taps(self, node: Node, along: str, sign: int) -> Node:
        """`node`, checked to be a filter (√½, ±√½) of stride 2 along rows or columns."""
        taps = self.constant(self.input(node, "GroupConvolutionBackpropData", 1)).flatten(1)
        strides = "2, 1" if along == "rows" else "1, 2"
        wanted = torch.tensor([HALF_ROOT, sign * HALF_ROOT])
        fits = taps.ndim == 2 and taps.shape[1] == 2 and bool(((taps - wanted).abs() < TOLERANCE).all())
        if not fits or node.attributes.get("strides") != strides:
            raise self._unlike(node, f"not the filter of an inverse Haar transform along the {along}")
        return node

    def _sum(self, one: Node, two: Node) -> Node:
        total = self.only_user(one, "Add")
        if self.only_user(two, "Add") is not total:
            raise self._unlike(total, "not the sum of two bands")
        return total

    # Checks

    def constant(self, node: Node) -> Tensor:
        """Values of a constant; what is not whole numbers must be float32."""
        if node.type != "Const":
            raise self._unlike(node, "expected a constant")
        values = self.graph.tensor(node)
        if values.is_floating_point() and values.dtype != torch.float32:
            raise self._unlike(node, f"holds {node.attributes['element_type']}, expected f32")
        return values

    def expect_near(self, node: Node | None, wanted: float, what: str) -> None:
        """A constant of one number that must be `wanted`."""
        values = None if node is None else self.constant(node)
        if values is None or values.numel() != 1 or not abs(float(values) - wanted) <= TOLERANCE:
            found = "none" if values is None else ", ".join(f"{v:.6f}" for v in values.flatten()[:3].tolist())
            raise FileError(self.graph.path, f"{what} is {found}, expected {wanted:.6f}")

    def check_shape(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise FileError(
                self.graph.path, f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}"
            )

    def check_padding(self, node: Node, padding: str) -> None:
        about = node.attributes
        given = [about.get(name) for name in ("strides", "dilations", "pads_begin", "pads_end")]
        if given != ["1, 1", "1, 1", padding, padding]:
            raise self._unlike(node, f"strides, dilations, padding are {given}")

    def check_transposed(self, product: Node) -> None:
        about = product.attributes
        if (about.get("transpose_a"), about.get("transpose_b")) != ("false", "true"):
            raise self._unlike(product, "expected a product with a transposed matrix")

    def check_same(self, node: Node, other: Node, name: str) -> None:
        if node is not other:
            raise FileError(
                self.graph.path, f"{name} is joined to {node.name} ({node.type}), expected {other.name}"
            )

    def check_starts_at(self, node: Node, name: str) -> None:
        """What `node` gives must be the constant of this name, only repeated for each image."""
        while node.type in ("Tile", "Broadcast"):
            node = self.input(node, node.type, 0)
        self.check_same(node, self.find(name), "the first convolution")

    def check_normalized(self, node: Node) -> None:
        """`node` must be z / √(mean z² + 1e-8), as far as its kinds of operations say."""
        first, second = self.input(node, "Multiply", 0), self.input(node, "Multiply", 1)
        z, scale = (first, second) if first.type == "Parameter" else (second, first)
        kinds, reached = set(), [scale]
        seen = {scale.id}
        while reached:
            at = reached.pop()
            kinds.add(at.type)
            for source in at.inputs:
                if source.node not in seen:
                    seen.add(source.node)
                    reached.append(self.graph.nodes[source.node])
        if z.type != "Parameter" or z.id not in seen or not {"ReduceMean", "Power", "Add"} <= kinds:
            raise self._unlike(node, "expected the normalisation of z")

    def _unlike(self, node: Node, what: str) -> FileError:
        return FileError(
            self.graph.path,
            f"layer {node.id} ({node.type} {node.name}): {what}: not MobileStyleGAN's network",
        )
