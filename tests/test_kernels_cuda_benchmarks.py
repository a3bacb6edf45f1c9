"""The benchmarks for a GPU, as far as they run without one: arguments, shapes, bytes, a tiny inversion."""

import json
import sys

import pytest
import torch

from tests.benchmarks import gpu_inversion, gpu_kernels

TINY = ["--device=cpu", "--modes=eager", "--resolution=16", "--width=0.03125", "--random-layers=2"]
TINY += ["--steps=6", "--repeats=1"]


def run(main: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    assert callable(main)
    main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [gpu_kernels.main, gpu_inversion.main])
def test_without_a_gpu_it_says_so_in_one_line(main: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run(main, monkeypatch)
    assert str(ended.value).startswith("no CUDA device: ")
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    "arguments",
    [["--pti", "x"], ["--modes", "fast"], ["--precisions", "fp8"], ["--steps", "3"], ["--device", "cpu"]],
)
def test_arguments_that_make_no_sense(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run(gpu_inversion.main, monkeypatch, *arguments)
    assert ended.value.code == 2


def test_a_tiny_inversion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WRANGAN_KERNELS", "off")
    arguments = [*TINY, "--precisions", "float32,bf16", "--batches", "1,2", "--json"]
    run(gpu_inversion.main, monkeypatch, *arguments)
    about, *rows = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert about["steps"] == 6
    assert [(row["batch"], row["precision"]) for row in rows] == [
        (1, "float32"),
        (1, "bf16"),
        (2, "float32"),
        (2, "bf16"),
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert row["peer_seconds"] is None
        # The image does not depend on its batch; bf16 is another, but near.
        assert 0.8 < row["off"] < 1.25
        assert row["precision"] != "float32" or row["off"] == 1.0
    assert torch.get_float32_matmul_precision() == "highest"


def test_bytes_of_the_kernels() -> None:
    """Of every tensor once: counted by hand for three kernels; all others can be called."""
    found = {}
    for case in gpu_kernels.cases(torch.device("meta"), 2, ["float32", "bf16"]):
        found[case.kernel, case.shape, case.dtype, case.layout] = case.bytes(case.call())
    assert all(count > 0 for count in found.values())
    side, maps = 256**2, 2 * 128
    assert found["upfirdn2d, 4 taps", "2×128×256²", "bf16", "NCHW"] == 2 * maps * side * 2
    assert found["upfirdn2d, down 2", "2×128×256²", "float32", "channels_last"] == 4 * maps * side * 5 // 4
    weights = 512 * 512 * 9
    expected = 4 * (weights * (2 + 2 + 2) + 2 * 512 + 2 * 512)
    assert found["modulated_weight", "2×512×512×3²", "float32", "OIkk"] == expected
    for *_, call in gpu_kernels.convolutions(torch.device("meta"), 2, ["float32"]):
        assert call().shape[:1] == (2,)


def test_a_row_of_the_table() -> None:
    case = gpu_kernels.Case("k", "s", "bf16", "NCHW", lambda: None, ())
    assert gpu_kernels.row(case, 1e-5, 0.7, False) == "| k | s | bf16 | NCHW | 10.0 | 70% | yes |"
    assert gpu_kernels.row(case, 1e-5, 0.69, False).endswith("69% | no |")
    assert json.loads(gpu_kernels.row(case, 1e-5, 0.5, True))["fraction"] == 0.5
