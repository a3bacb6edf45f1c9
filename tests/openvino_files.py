"""A MobileStyleGAN generator as the two pairs of files that OpenVINO's converter makes of it."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator

NARROW = MobileStyleGANConfig(
    channels={4: 16, 8: 16, 16: 8}, num_latents=18, style_dim=12, mapping_layers=3, randomized_layers=2
)
HALF_ROOT = math.sqrt(0.5)
Output = tuple[int, int]
"""A layer's number, and which of its outputs."""


def narrow_generator(seed: int = 0, config: MobileStyleGANConfig = NARROW) -> MobileStyleGANGenerator:
    """A generator in which every tensor matters, with noise maps of mean square 1."""
    torch.manual_seed(seed)
    generator = MobileStyleGANGenerator(config)
    with torch.no_grad():
        for tensor in generator.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
        for noise in generator.noise_inputs().values():
            noise.map.div_(noise.map.square().mean().sqrt())
            noise.strength.abs_()
    return generator.eval()


class IrFile:
    """Layers, edges and bytes as they are put in."""

    def __init__(self, name: str) -> None:
        self.name, self.bytes = name, b""
        self.layers: list[ElementTree.Element] = []
        self.edges: list[dict[str, str]] = []
        self._inputs: list[int] = []

    def constant(self, name: str, values: Tensor) -> Output:
        kind = {torch.float32: "f32", torch.int64: "i64", torch.float16: "f16"}[values.dtype]
        contents = values.detach().numpy().astype(values.numpy().dtype.newbyteorder("<")).tobytes()
        shape = ", ".join(map(str, values.shape))
        about = {
            "element_type": kind,
            "shape": shape,
            "offset": str(len(self.bytes)),
            "size": str(len(contents)),
        }
        self.bytes += contents
        return self.layer("Const", name, [], about)

    def number(self, name: str, value: float) -> Output:
        return self.constant(name, torch.tensor([value]))

    def layer(
        self,
        kind: str,
        name: str,
        inputs: list[Output],
        about: dict[str, str] | None = None,
        outputs: int = 1,
    ) -> Output:
        number = len(self.layers)
        layer = ElementTree.Element("layer", id=str(number), name=name, type=kind, version="opset1")
        if about:
            ElementTree.SubElement(layer, "data", about)
        if inputs:
            side = ElementTree.SubElement(layer, "input")
            for port in range(len(inputs)):
                ElementTree.SubElement(side, "port", id=str(port), precision="FP32")
        self._inputs.append(len(inputs))
        if outputs:
            side = ElementTree.SubElement(layer, "output")
            for port in range(outputs):
                ElementTree.SubElement(side, "port", id=str(len(inputs) + port), precision="FP32")
        for port, (start, output) in enumerate(inputs):
            ends = {"from-layer": str(start), "from-port": str(self._inputs[start] + output)}
            self.edges.append({**ends, "to-layer": str(number), "to-port": str(port)})
        self.layers.append(layer)
        return number, 0

    def write(self, folder: Path) -> None:
        root = ElementTree.Element("net", name=self.name, version="10")
        ElementTree.SubElement(root, "layers").extend(self.layers)
        edges = ElementTree.SubElement(root, "edges")
        for edge in self.edges:
            ElementTree.SubElement(edges, "edge", edge)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.xml").write_bytes(ElementTree.tostring(root, xml_declaration=True))
        (folder / f"{self.name}.bin").write_bytes(self.bytes)


def write_ir(folder: Path, generator: MobileStyleGANGenerator) -> dict[str, Path]:
    """MappingNetwork and SynthesisNetwork, .xml and .bin; the paths by name."""
    mapping_ir(generator).write(folder)
    synthesis_ir(generator).write(folder)
    return {path.name: path for path in sorted(folder.iterdir())}


def mapping_ir(generator: MobileStyleGANGenerator) -> IrFile:
    ir, state = IrFile("MappingNetwork"), generator.state_dict()
    z = ir.layer("Parameter", "var", [], {"shape": "1, 12", "element_type": "f32"})
    square = ir.layer("Power", "Pow_0", [z, ir.number("171", 2)])
    axis = ir.constant("ReduceMean_1/axis", torch.tensor([1]))
    mean = ir.layer("ReduceMean", "ReduceMean_1", [square, axis], {"keep_dims": "true"})
    sum_ = ir.layer("Add", "Add_3", [mean, ir.number("Constant_2", 1e-8)])
    root = ir.layer("Power", "Sqrt_4/pow_", [sum_, ir.number("126", 0.5)])
    inverse = ir.layer("Power", "Div_6/reciprocal_", [root, ir.number("r", -1)])
    x = ir.layer("Multiply", "Mul_7", [z, ir.layer("Multiply", "Div_6", [ir.number("5", 1), inverse])])
    for n in range(1, generator.config.mapping_layers + 1):
        weight = ir.constant(f"17{n}", state[f"style.{n}.weight"])
        product = ir.layer(
            "MatMul", f"MatMul_{n}", [x, weight], {"transpose_a": "false", "transpose_b": "true"}
        )
        shape = ir.constant(f"shape_{n}", torch.tensor([1, 12]))
        bias = ir.layer("Reshape", f"Reshape_{n}", [ir.constant(f"18{n}", state[f"style.{n}.bias"]), shape])
        x = ir.layer("Add", f"Add_{n}", [product, bias])
        x = ir.layer("PReLU", f"LeakyRelu_{n}", [x, ir.number(f"slope_{n}", 0.2)])
        x = ir.layer("Multiply", f"Mul_{n}", [x, ir.number(f"gain_{n}", math.sqrt(2))])
    ir.layer("Result", "style/sink_port_0", [x], outputs=0)
    return ir


class _Synthesis(IrFile):
    def __init__(self, generator: MobileStyleGANGenerator) -> None:
        super().__init__("SynthesisNetwork")
        self.state = generator.state_dict()
        self.w = self.layer("Parameter", "style", [], {"shape": "1, 12", "element_type": "f32"})

    def style(self, name: str, named: str, factor: float | None) -> Output:
        weight = self.constant(f"m.{named}.modulation.weight", self.state[f"{name}.modulation.weight"])
        about = {"transpose_a": "false", "transpose_b": "true"}
        product = self.layer("MatMul", f"Gemm/{name}", [self.w, weight], about)
        bias = self.constant(f"m.{named}.modulation.bias", self.state[f"{name}.modulation.bias"][None])
        affine = self.layer("Add", f"Gemm_{name}", [product, bias])
        shape = self.constant(f"shape/{name}", torch.tensor([1, -1, 1, 1]))
        shaped = self.layer("Reshape", f"Reshape_{name}", [affine, shape])
        if factor is None:
            return shaped
        return self.layer("Multiply", f"Mul_{name}", [shaped, self.number(f"Constant_{name}", factor)])

    def times(self, style: Output, x: Output) -> Output:
        return self.layer("Multiply", "Mul_x", [style, x])

    def convolution(self, name: str, x: Output, number: int) -> Output:
        state, width = self.state, self.state[f"{name}.modulation.bias"].numel()
        x = self.times(self.style(name, f"{name}.conv", 1 / math.sqrt(width * 9)), x)
        about = {"strides": "1, 1", "dilations": "1, 1", "pads_begin": "1, 1", "pads_end": "1, 1"}
        if f"{name}.dense.weight" in state:
            weight = self.constant("Mul_39_copy", state[f"{name}.dense.weight"])
            x = self.layer("Convolution", f"Conv_{name}", [x, weight], about)
        else:
            depthwise = state[f"{name}.depthwise.weight"][:, :, None]
            weight = self.constant(f"m.{name}.conv.weight_dw", depthwise)
            x = self.layer("GroupConvolution", f"Conv_{name}", [x, weight], about)
            weight = self.constant(f"Mul_{number}_copy", state[f"{name}.pointwise.weight"])
            x = self.layer("Convolution", f"Conv_{name}_1", [x, weight], about | _NO_PADDING)
        noise = state[f"noises.noise_{number}"] * state[f"{name}.noise.weight"]
        x = self.layer("Add", f"Add_{name}", [x, self.constant(f"15{number}", noise)])
        bias = self.constant(f"m.{name}.bias", state[f"{name}.bias"][None, :, None, None])
        x = self.layer("Add", f"Add_{name}_1", [x, bias])
        return self.layer("PReLU", f"LeakyRelu_{name}", [x, self.number(f"slope_{name}", 0.2)])

    def inverse_haar(self, x: Output, channels: int) -> Output:
        quarter = channels // 4
        parts = self.constant("parts", torch.tensor([quarter, 3 * quarter]))
        split, _ = self.layer(
            "VariadicSplit", "Split", [x, self.constant("axis", torch.tensor(1)), parts], outputs=2
        )
        shape = self.constant("shape", torch.tensor([1, quarter, 3, -1]))
        high = self.layer("Reshape", "Reshape", [(split, 1), shape])
        ones, axis = self.constant("ones", torch.tensor([1, 1, 1])), self.constant("axis", torch.tensor(2))
        bands, _ = self.layer("VariadicSplit", "Split_1", [high, axis, ones], outputs=3)
        vertical, horizontal, both = (
            self.layer("Squeeze", f"Squeeze_{n}", [(bands, n), self.constant("dims", torch.tensor([2]))])
            for n in range(3)
        )
        low = self._taps((split, 0), 1, quarter, "rows")
        left = self.layer("Add", "Add_l", [low, self._taps(vertical, -1, quarter, "rows")])
        below = self._taps(horizontal, 1, quarter, "rows")
        right = self.layer("Add", "Add_r", [below, self._taps(both, -1, quarter, "rows")])
        left, right = self._taps(left, 1, quarter, "columns"), self._taps(right, -1, quarter, "columns")
        return self.layer("Add", "Add_haar", [left, right])

    def _taps(self, x: Output, sign: int, channels: int, along: str) -> Output:
        shape = (channels, 1, 1, 2, 1) if along == "rows" else (channels, 1, 1, 1, 2)
        taps = torch.tensor([HALF_ROOT, sign * HALF_ROOT]).repeat(channels).reshape(shape)
        about = {"strides": "2, 1" if along == "rows" else "1, 2"}
        return self.layer(
            "GroupConvolutionBackpropData", "ConvTranspose", [x, self.constant("15", taps)], about
        )


_NO_PADDING = {"pads_begin": "0, 0", "pads_end": "0, 0"}


def synthesis_ir(generator: MobileStyleGANGenerator) -> IrFile:
    ir = _Synthesis(generator)
    widths, state = list(generator.config.channels.values()), ir.state
    x = ir.constant("m.input.input", state["input.input"])
    x = ir.layer("Broadcast", "Expand_9", [x, ir.constant("ones", torch.tensor([1, 1, 1, 1]))])
    x = ir.layer("Tile", "Tile_10", [x, ir.constant("ones", torch.tensor([1, 1, 1, 1]))])
    x = ir.convolution("conv1", x, 0)
    for k, width in enumerate(widths[:-1]):
        x = ir.times(ir.style(f"layers.{k}.up", f"layers.{k}.up", None), x)
        x = ir.inverse_haar(x, width)
        x = ir.convolution(f"layers.{k}.conv1", x, 2 * k + 1)
        x = ir.convolution(f"layers.{k}.conv2", x, 2 * k + 2)
    last = f"layers.{len(widths) - 2}.to_img"
    x = ir.times(ir.style("to_img", f"{last}.conv", 1 / math.sqrt(widths[-1])), x)
    weight = ir.constant(f"m.{last}.conv.weight", state["to_img.conv.weight"])
    x = ir.layer("Convolution", "Conv_753", [x, weight])
    bias = ir.constant(f"m.{last}.bias", state["to_img.bias"][None, :, None, None])
    x = ir.inverse_haar(ir.layer("Add", "Add_754", [x, bias]), state["to_img.bias"].numel())
    ir.layer("Result", "img/sink_port_0", [x], outputs=0)
    return ir
