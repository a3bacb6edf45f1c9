"""OpenVINO's files as data, and MobileStyleGAN's weights in them."""

import dataclasses
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.openvino_files import NARROW, IrFile, mapping_ir, narrow_generator, synthesis_ir, write_ir
from wrangan_cli.engine.base.carriers import CARRIERS
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints import mobile_stylegan
from wrangan_cli.engine.checkpoints.openvino_ir import Graph, read_graph
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator


def graph(folder: Path, name: str) -> Graph:
    path = folder / f"{name}.xml"
    return read_graph(path, path.read_bytes(), path.with_suffix(".bin").read_bytes())


def both(folder: Path) -> tuple[Graph, Graph]:
    return graph(folder, "MappingNetwork"), graph(folder, "SynthesisNetwork")


def test_a_narrow_network_comes_back(tmp_path: Path) -> None:
    generator = narrow_generator()
    write_ir(tmp_path, generator)
    found = mobile_stylegan.state_dict(*both(tmp_path))
    expected = {name: v for name, v in generator.state_dict().items() if not name.endswith(".std")}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        # Noise maps and strengths were multiplied and divided; all else is the same numbers.
        tolerance = 1e-6 if "noise" in name else 0
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=0, msg=name)


def test_noise_is_split_into_strength_and_map() -> None:
    values = torch.randn(1, 1, 8, 8) * 0.3
    strength, noise_map = mobile_stylegan.split_noise(values)
    assert strength.shape == (1,)
    assert float(noise_map.square().mean()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(strength * noise_map, values)
    strength, noise_map = mobile_stylegan.split_noise(torch.zeros(1, 1, 4, 4))
    assert strength.tolist() == [0]
    assert not noise_map.any()


def test_constants_are_little_endian_and_copied(tmp_path: Path) -> None:
    ir = IrFile("x")
    ir.constant("half", torch.tensor([[1.5, -2]], dtype=torch.float16))
    ir.constant("long", torch.tensor(7))
    ir.write(tmp_path)
    read = graph(tmp_path, "x")
    half, long = (read.tensor(node) for node in read.constants())
    assert half.tolist() == [[1.5, -2]]
    assert (long.dtype, long.shape, int(long)) == (torch.int64, (), 7)
    half.zero_()
    assert read.tensor(next(read.constants())).tolist() == [[1.5, -2]]


BROKEN_XML: list[tuple[str, Callable[[str], str], str]] = [
    ("truncated", lambda xml: xml[:-40], "not a readable XML"),
    ("doctype", lambda xml: xml.replace("<net", '<!DOCTYPE net [<!ENTITY a "b">]><net'), "DOCTYPE"),
    ("another format", lambda xml: xml.replace('version="10"', 'version="7"'), "version 10 or 11"),
    ("no edges", lambda xml: re.sub(r"<edges>.*</edges>", "", xml), "no layers or no edges"),
    ("twice", lambda xml: xml.replace('id="1" name="171"', 'id="0" name="171"'), "two layers with the id 0"),
    ("no name", lambda xml: xml.replace('name="171" ', ""), "without id, name or type"),
    ("from nowhere", lambda xml: xml.replace('from-layer="1"', 'from-layer="999"'), "layer '999' to"),
    ("no such output", lambda xml: xml.replace('from-port="0"', 'from-port="8"', 1), "output 8 of layer"),
    ("two edges", lambda xml: xml.replace('to-port="1"', 'to-port="0"', 1), "two edges to input 0"),
    ("edge lost", lambda xml: re.sub(r"<edge [^>]*>", "", xml, count=1), "do not match the edges"),
    (
        "no number",
        lambda xml: xml.replace('from-port="0"', 'from-port="+0"', 1),
        r"'\+0' in place of a whole",
    ),
    (
        "type",
        lambda xml: xml.replace('"f32" shape="1"', '"bf16" shape="1"', 1),
        "unknown element type 'bf16'",
    ),
    ("shape", lambda xml: xml.replace('shape="12, 12"', 'shape="12, 13"', 1), r"576 bytes, expected 624"),
    ("size", lambda xml: xml.replace('size="576"', 'size="-576"', 1), "'-576' in place of a whole number"),
    (
        "offset",
        lambda xml: re.sub(r'offset="\d+" size="48"', 'offset="9999" size="48"', xml, count=1),
        "BIN has",
    ),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in BROKEN_XML], ids=[c[0] for c in BROKEN_XML])
def test_broken_descriptions(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    mapping_ir(narrow_generator()).write(tmp_path)
    path = tmp_path / "MappingNetwork.xml"
    before = path.read_text()
    after = change(before)
    assert after != before
    with pytest.raises(FileError, match=message) as raised:
        read_graph(path, after.encode(), path.with_suffix(".bin").read_bytes())
    assert "\n" not in str(raised.value)
    assert raised.value.path == path


NO_XML = [b"", b"\xff\xfe<\0n\0", b"<net/>", b"\x80", b"<?xml version='1.0' encoding='x'?><a/>"]


@pytest.mark.parametrize("contents", NO_XML)
def test_descriptions_that_are_none(tmp_path: Path, contents: bytes) -> None:
    with pytest.raises(FileError):
        read_graph(tmp_path / "x.xml", contents, b"")


def test_a_short_bin(tmp_path: Path) -> None:
    mapping_ir(narrow_generator()).write(tmp_path)
    path = tmp_path / "MappingNetwork.xml"
    with pytest.raises(FileError, match=r"ends at byte \d+, but the BIN has 100"):
        read_graph(path, path.read_bytes(), bytes(100))


def test_edges_in_a_circle(tmp_path: Path) -> None:
    ir = mapping_ir(narrow_generator())
    numbers = {layer.get("name", ""): layer.get("id", "") for layer in ir.layers}
    (edge,) = [e for e in ir.edges if (e["to-layer"], e["to-port"]) == (numbers["MatMul_1"], "0")]
    edge |= {"from-layer": numbers["Mul_3"], "from-port": "2"}
    ir.write(tmp_path)
    with pytest.raises(FileError, match="form a cycle"):
        graph(tmp_path, "MappingNetwork")


def changed(ir: IrFile, named: str, **attributes: str) -> IrFile:
    """The attributes of the layers of this name, or of their data, changed."""
    layers = [layer for layer in ir.layers if layer.get("name") == named]
    assert layers
    for layer in layers:
        for key, value in attributes.items():
            data = layer.find("data")
            (layer if key in ("type", "name") or data is None else data).set(key, value)
    return ir


def renamed(old: str, new: str) -> Callable[[IrFile], IrFile]:
    return lambda ir: changed(ir, old, name=new)


def with_two_results(ir: IrFile) -> IrFile:
    ir.layer("Result", "second", [(0, 0)], outputs=0)
    return ir


OTHER_FORMS: list[tuple[str, Callable[[IrFile], IrFile], str]] = [
    ("weight lost", renamed("m.layers.0.conv1.conv.weight_dw", "x"), ""),
    ("bias lost", renamed("m.layers.0.conv1.bias", "x"), r"the blocks \[1\]"),
    ("modulation lost", renamed("m.conv1.conv.modulation.bias", "x"), "lacks the constant m.conv1.conv.mod"),
    ("another operation", lambda ir: changed(ir, "LeakyRelu_conv1", type="Relu"), "expected one PReLU"),
    ("stride", lambda ir: changed(ir, "Conv_layers.0.conv1", strides="2, 2"), "strides, dilations, padding"),
    ("padding", lambda ir: changed(ir, "Conv_conv1", pads_end="0, 0"), "strides, dilations, padding"),
    ("transposed", lambda ir: changed(ir, "Gemm/conv1", transpose_b="false"), "transposed matrix"),
    ("haar strides", lambda ir: changed(ir, "ConvTranspose", strides="2, 2"), "inverse Haar transform along"),
    ("two results", with_two_results, "has 2 results"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in OTHER_FORMS], ids=[c[0] for c in OTHER_FORMS])
def test_networks_of_another_form(tmp_path: Path, change: Callable[[IrFile], IrFile], message: str) -> None:
    generator = narrow_generator()
    mapping_ir(generator).write(tmp_path)
    change(synthesis_ir(generator)).write(tmp_path)
    if not message:
        # The depthwise weight is found by the edges: its name does not matter.
        assert mobile_stylegan.state_dict(*both(tmp_path))
        return
    with pytest.raises(FileError, match=message):
        mobile_stylegan.state_dict(*both(tmp_path))


def test_constants_that_the_network_would_not_use(tmp_path: Path) -> None:
    """Another constant of a style, slope, gain, or wavelet: its images would be others."""
    for name, message in (
        ("Constant_layers.1.conv1", "layers.1.conv1: the constant of its style is 0.5"),
        ("Constant_to_img", "to_img: the constant of its style"),
        ("slope_conv1", "the slope of a leaky ReLU is 0.5"),
    ):
        generator = narrow_generator()
        mapping_ir(generator).write(tmp_path)
        ir = synthesis_ir(generator)
        place = next(layer for layer in ir.layers if layer.get("name") == name).find("data")
        assert place is not None
        offset = int(place.get("offset", ""))
        ir.bytes = ir.bytes[:offset] + torch.tensor([0.5]).numpy().tobytes() + ir.bytes[offset + 4 :]
        ir.write(tmp_path)
        with pytest.raises(FileError, match=message):
            mobile_stylegan.state_dict(*both(tmp_path))


def test_edges_that_lead_elsewhere(tmp_path: Path) -> None:
    """conv2 takes what conv1 takes: all tensors are there, but it is another network."""
    generator = narrow_generator()
    mapping_ir(generator).write(tmp_path)
    ir = synthesis_ir(generator)
    numbers = {layer.get("name", ""): layer.get("id") for layer in ir.layers}
    relu, first = numbers["LeakyRelu_layers.0.conv1"], numbers["LeakyRelu_conv1"]
    (edge,) = [edge for edge in ir.edges if edge["from-layer"] == relu]
    edge["from-layer"] = str(first)
    ir.write(tmp_path)
    with pytest.raises(FileError, match=r"layers\.0\.conv2 is connected to LeakyRelu_conv1"):
        mobile_stylegan.state_dict(*both(tmp_path))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    generator = narrow_generator()
    with torch.no_grad():
        generator.state_dict()["to_img.bias"][0] = float("nan")
    write_ir(tmp_path, generator)
    with pytest.raises(FileError, match=r"to_img\.bias has values that are not finite"):
        mobile_stylegan.state_dict(*both(tmp_path))


def test_mapping_and_synthesis_of_different_networks(tmp_path: Path) -> None:
    write_ir(tmp_path, narrow_generator())
    other = narrow_generator(config=dataclasses.replace(NARROW, style_dim=8))
    mapping_ir(other).write(tmp_path)
    with pytest.raises(FileError, match="different length than"):
        mobile_stylegan.state_dict(*both(tmp_path))


@pytest.mark.skipif("WRANGAN_RANDOM_FACE" not in os.environ, reason="WRANGAN_RANDOM_FACE names no wheel")
def test_the_published_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(os.environ["WRANGAN_RANDOM_FACE"]) as archive:
        for member in CARRIERS["ffhq"].members:
            (tmp_path / member.name).write_bytes(archive.read(member.path))
    found = mobile_stylegan.state_dict(*both(tmp_path))
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
    MobileStyleGANGenerator(MobileStyleGANConfig(channels)).load_state_dict(found)
    assert sum(tensor.numel() for tensor in found.values()) == 10_106_667
