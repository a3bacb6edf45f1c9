"""Extract MobileStyleGAN's weights from OpenVINO's representation of its two networks.

The converter kept the names of most weights. Those that it folded (a convolution's weights with its
demodulation, a noise map with its strength) have lost their names, and are found by following the
edges from named constants. Every node on the way is checked, so that other networks are rejected, and
no tensor is mistaken for another.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.openvino_ir import Graph, Node
from wrangan_cli.engine.checkpoints.openvino_walk import TOLERANCE, Walk

SLOPE = 0.2
"""Slope of the network's leaky ReLUs."""
HALF_ROOT = math.sqrt(0.5)


def state_dict(mapping: Graph, synthesis: Graph) -> dict[str, Tensor]:
    """The tensors of a `MobileStyleGANGenerator` by name, float32.

    All factors of equalised learning rates are included in the weights; the constant of a layer's style,
    1/√(in · k²), is not. Raises FileError for other networks.
    """
    tensors = {**mapping_weights(mapping), **synthesis_weights(synthesis)}
    style_dim = tensors["style.1.weight"].shape[0]
    if tensors["conv1.modulation.weight"].shape[1] != style_dim:
        produced = f"that {mapping.path} produces ({style_dim})"
        raise FileError(synthesis.path, f"expects w of a different length than the one {produced}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(synthesis.path, f"{name} has values that are not finite")
    return tensors


def mapping_weights(graph: Graph) -> dict[str, Tensor]:
    """`style.<n>.weight` (out, in) and `style.<n>.bias` (out,), n from 1 in order of use."""
    network = _Network(graph)
    found: list[tuple[Tensor, Tensor]] = []
    node = network.result()
    # From the last layer to the first, each w = √2 · leaky ReLU(x · Wᵀ + b).
    while (parts := network.constant_operand(node, "Multiply")) is not None:
        node, gain = parts
        network.expect_near(gain, math.sqrt(2), "the mapping's gain")
        node = network.leaky_relu(node)
        product, shift = network.operands(node, "Add")
        bias = network.constant(network.input(shift, "Reshape", 0) if shift.type == "Reshape" else shift)
        weight = network.constant(network.input(product, "MatMul", 1))
        network.check_transposed(product)
        found.append((weight, bias.flatten()))
        node = network.input(product, "MatMul", 0)
    network.check_normalized(node)
    if not found:
        raise FileError(graph.path, "holds no mapping network")
    tensors: dict[str, Tensor] = {}
    for number, (weight, bias) in enumerate(reversed(found), 1):
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or bias.shape != weight.shape[:1]:
            raise FileError(graph.path, f"mapping layer {number}: the shapes of weight and bias do not match")
        if weight.shape != found[0][0].shape:
            raise FileError(graph.path, f"mapping layer {number} has a different width than the last one")
        tensors[f"style.{number}.weight"] = weight
        tensors[f"style.{number}.bias"] = bias
    return tensors


def synthesis_weights(graph: Graph) -> dict[str, Tensor]:
    """All other tensors: the constant input, convolutions with style, noise and bias, `up`, `to_img`."""
    network = _Network(graph)
    blocks = network.blocks()
    constant = network.named("m.input.input")
    if constant.ndim != 4 or constant.shape[0] != 1 or constant.shape[2] != constant.shape[3]:
        raise FileError(graph.path, f"its constant input has the shape {list(constant.shape)}")
    tensors = {"input.input": constant}
    first = _convolution(network, "conv1", side=constant.shape[2], number=0)
    network.check_starts_at(first.start, "m.input.input")
    tensors |= first.tensors
    end, side = first.end, constant.shape[2]
    for k in range(blocks):
        side *= 2
        up, image = _up(network, f"layers.{k}.up", end)
        one = _convolution(network, f"layers.{k}.conv1", side, 2 * k + 1)
        two = _convolution(network, f"layers.{k}.conv2", side, 2 * k + 2)
        network.check_same(one.start, image, f"layers.{k}.conv1")
        network.check_same(two.start, one.end, f"layers.{k}.conv2")
        tensors |= {**up, **one.tensors, **two.tensors}
        end = two.end
    tensors |= _to_img(network, f"layers.{blocks - 1}.to_img", end)
    return tensors


@dataclass(frozen=True)
class _Convolution:
    tensors: dict[str, Tensor]
    start: Node
    """Its input, before multiplication by the style."""
    end: Node
    """Its output."""


def _convolution(network: "_Network", name: str, side: int, number: int) -> _Convolution:
    """The convolution named `m.<name>.…`: separable in a block, dense for the first one."""
    style = network.style(name)
    shifted = network.only_user(network.find(f"m.{name}.bias"), "Add")
    noisy = network.other_operand(shifted, f"m.{name}.bias")
    convolved, noise = network.operands(noisy, "Add")
    weight = network.constant(network.input(convolved, "Convolution", 1))
    before = network.input(convolved, "Convolution", 0)
    tensors: dict[str, Tensor] = {}
    if before.type == "GroupConvolution":
        depthwise = network.constant(network.input(before, "GroupConvolution", 1))
        network.check_shape(f"{name}.depthwise", depthwise, (style.width, 1, 1, 3, 3))
        network.check_shape(f"{name}.pointwise", weight, (weight.shape[0], style.width, 1, 1))
        network.check_padding(before, "1, 1")
        network.check_padding(convolved, "0, 0")
        tensors[f"{name}.depthwise.weight"] = depthwise[:, :, 0]
        tensors[f"{name}.pointwise.weight"] = weight
        before = network.input(before, "GroupConvolution", 0)
    else:
        network.check_shape(f"{name}.dense", weight, (weight.shape[0], style.width, 3, 3))
        network.check_padding(convolved, "1, 1")
        tensors[f"{name}.dense.weight"] = weight
    start = network.times_style(before, style.node)
    network.expect_near(style.factor, 1 / math.sqrt(style.width * 9), f"{name}: the constant of its style")
    values = network.constant(noise)
    network.check_shape(f"{name}.noise", values, (1, 1, side, side))
    strength, noise_map = split_noise(values)
    bias = network.named(f"m.{name}.bias")
    network.check_shape(f"{name}.bias", bias, (1, weight.shape[0], 1, 1))
    tensors |= {
        f"{name}.modulation.weight": style.weight,
        f"{name}.modulation.bias": style.bias,
        f"{name}.noise.weight": strength,
        f"{name}.bias": bias.flatten(),
        f"noises.noise_{number}": noise_map,
    }
    return _Convolution(tensors, start, network.only_leaky_relu(shifted))


def _up(network: "_Network", name: str, before: Node) -> tuple[dict[str, Tensor], Node]:
    """The style of an `up` and the end of its inverse Haar transform."""
    style = network.style(name)
    if style.factor is not None:
        raise FileError(network.graph.path, f"{name}: its style has a factor, which was not expected")
    product = network.only_user(style.node, "Multiply")
    network.check_same(network.times_style(product, style.node), before, name)
    image = network.haar_end(product, style.width)
    return {f"{name}.modulation.weight": style.weight, f"{name}.modulation.bias": style.bias}, image


def _to_img(network: "_Network", name: str, before: Node) -> dict[str, Tensor]:
    style = network.style(name)
    weight, bias = network.named(f"m.{name}.conv.weight"), network.named(f"m.{name}.bias")
    network.check_shape(f"{name}.conv", weight, (weight.shape[0], style.width, 1, 1))
    network.check_shape(f"{name}.bias", bias, (1, weight.shape[0], 1, 1))
    network.expect_near(style.factor, 1 / math.sqrt(style.width), f"{name}: the constant of its style")
    shifted = network.only_user(network.find(f"m.{name}.bias"), "Add")
    convolved = network.other_operand(shifted, f"m.{name}.bias")
    start = network.times_style(network.input(convolved, "Convolution", 0), style.node)
    network.check_same(start, before, name)
    network.check_same(network.haar_end(shifted, weight.shape[0]), network.result(), name)
    return {
        "to_img.modulation.weight": style.weight,
        "to_img.modulation.bias": style.bias,
        "to_img.conv.weight": weight,
        "to_img.bias": bias.flatten(),
    }


def split_noise(values: Tensor) -> tuple[Tensor, Tensor]:
    """A map multiplied by its strength → the strength (1,), and the map with mean square 1.

    A map of zeros gives strength 0 and zeros. The sum is exact, so the result is the same on every machine.
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
    """The constant by which it is multiplied, if any."""
    node: Node
    """Its output, (1, width, 1, 1)."""

    @property
    def width(self) -> int:
        return self.weight.shape[0]


class _Network(Walk):
    """The steps that are specific to MobileStyleGAN."""

    def blocks(self) -> int:
        """The number of blocks, which must be numbered from 0."""
        matches = [re.fullmatch(r"m\.layers\.(\d{1,2})\.conv1\.bias", name) for name in self._named]
        numbers = sorted(int(match[1]) for match in matches if match)
        if not numbers or numbers != list(range(len(numbers))):
            raise FileError(self.graph.path, f"has the blocks {numbers}: not MobileStyleGAN's network")
        return len(numbers)

    def style(self, name: str) -> _Style:
        """The style of a layer: an affine map of w, reshaped to (1, width, 1, 1), often times a constant."""
        # `up` itself has the modulation; in other layers the convolution has it.
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
            raise self.error_at(product, f"{name}: its modulation has a different weight")
        if self.input(product, "MatMul", 0).type != "Parameter":
            raise self.error_at(product, f"{name}: its style does not depend on w directly")
        values = self.constant(bias).flatten()
        shaped = self.only_user(affine, "Reshape")
        scaled = self.constant_operand(self.only_user(shaped, "Multiply"), "Multiply")
        if scaled is None:
            return _Style(weight, values, None, shaped)
        return _Style(weight, values, scaled[1], self.only_user(shaped, "Multiply"))

    def times_style(self, node: Node, style: Node) -> Node:
        """The factor that `node` multiplies by this style."""
        both = [self.input(node, "Multiply", 0), self.input(node, "Multiply", 1)]
        if style not in both:
            raise self.error_at(node, f"expected a product with {style.name}")
        return both[1] if both[0] is style else both[0]

    def leaky_relu(self, node: Node) -> Node:
        """The input of `node`, which must be a leaky ReLU of slope 0.2."""
        self.expect_near(self.input(node, "PReLU", 1), SLOPE, "the slope of a leaky ReLU")
        return self.input(node, "PReLU", 0)

    def only_leaky_relu(self, node: Node) -> Node:
        """The only leaky ReLU that is applied to the output of `node`."""
        user = self.only_user(node, "PReLU")
        self.leaky_relu(user)
        return user

    def haar_end(self, node: Node, channels: int) -> Node:
        """The end of the inverse Haar transform of the output of `node`, checked tap by tap.

        The first quarter of the channels is the low band; the others are triples of neighbours, the bands
        that are high along the rows' direction, along the columns, and along both.
        """
        split = self.only_user(node, "VariadicSplit")
        parts = self.constant(self.input(split, "VariadicSplit", 2)).tolist()
        if channels % 4 or parts != [channels // 4, 3 * channels // 4]:
            raise self.error_at(split, f"splits {channels} channels into {parts}")
        low = self._taps(self.user_of(split, 0, "GroupConvolutionBackpropData"), "rows", 1)
        bands = self.user_of(split, 1, "Reshape")
        bands = self.only_user(bands, "VariadicSplit")
        squeezed = [self.user_of(bands, number, "Squeeze") for number in range(3)]
        vertical, horizontal, both = (
            self._taps(self.only_user(band, "GroupConvolutionBackpropData"), "rows", sign)
            for band, sign in zip(squeezed, (-1, 1, -1), strict=True)
        )
        columns = [
            self._taps(self.only_user(total, "GroupConvolutionBackpropData"), "columns", sign)
            for total, sign in ((self._sum(low, vertical), 1), (self._sum(horizontal, both), -1))
        ]
        return self._sum(*columns)

    def _taps(self, node: Node, along: str, sign: int) -> Node:
        """`node`, checked to be a filter (√½, ±√½) of stride 2 along rows or columns."""
        taps = self.constant(self.input(node, "GroupConvolutionBackpropData", 1)).flatten(1)
        strides = "2, 1" if along == "rows" else "1, 2"
        wanted = torch.tensor([HALF_ROOT, sign * HALF_ROOT])
        fits = taps.ndim == 2 and taps.shape[1] == 2 and bool(((taps - wanted).abs() < TOLERANCE).all())
        if not fits or node.attributes.get("strides") != strides:
            raise self.error_at(node, f"not the filter of an inverse Haar transform along the {along}")
        return node

    def _sum(self, one: Node, two: Node) -> Node:
        total = self.only_user(one, "Add")
        if self.only_user(two, "Add") is not total:
            raise self.error_at(total, "not the sum of two bands")
        return total

    def check_starts_at(self, node: Node, name: str) -> None:
        """Check that the output of `node` is the constant of this name, repeated for each image."""
        while node.type in ("Tile", "Broadcast"):
            node = self.input(node, node.type, 0)
        self.check_same(node, self.find(name), "the first convolution")

    def check_normalized(self, node: Node) -> None:
        """Check that `node` is z / √(mean z² + 1e-8), as far as the types of its operations show."""
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
            raise self.error_at(node, "expected the normalisation of z")
