"""The CUDA sources compile, link and load, without a GPU, where an nvcc is found.

Without optimisation, which is where the time of a real build goes: what is wrong in a source shows
all the same, and the numbers of its bodies are tested elsewhere.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels_cuda_host import CUDA_SOURCES, compiled_once, run, torch_includes

OPERATORS = (
    "upfirdn2d",
    "fir_act",
    "fir_act_backward",
    "add_upsampled",
    "modulated_weight",
    "modulated_weight_backward",
    "separable_conv",
    "separable_conv_backward",
    "haar_up",
    "haar_up_backward",
    "pooled_pointwise",
    "pooled_pointwise_backward",
)
TORCH = Path(torch.__file__).parent
pytestmark = pytest.mark.cuda_build
LOAD = """
import sys, torch
import wrangan_kernels.operators
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    print(name, torch._C._dispatch_has_kernel_for_dispatch_key("wrangan::" + name, "CUDA"))
"""


def cuda_folders() -> list[Path]:
    """Where CUDA may be: CUDA_HOME, the packages that torch depends on, the usual places."""
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    packages = [
        Path(entry) / "nvidia" / f"cu{(torch.version.cuda or '0').split('.')[0]}" for entry in sys.path
    ]
    return [path for path in (*named, *packages, Path("/usr/local/cuda")) if path.is_dir()]


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = [str(folder / "bin" / "nvcc") for folder in cuda_folders()]
    for path in (*found, shutil.which("nvcc") or ""):
        if os.access(path, os.X_OK):
            return path
    pytest.skip("no nvcc: the CUDA sources are not compiled")


def compiled(nvcc: str, source: Path, *flags: str) -> Path:
    fast = ["-Xcicc", "-O0", "-Xptxas", "-O0"]
    common = ["-std=c++20", "-Xcompiler", "-fPIC", *torch_includes()]
    return compiled_once([nvcc, *common, *fast, *flags, "-c", str(source)], source, ".o")


@pytest.mark.slow
def test_compile_link_load(nvcc: str, tmp_path: Path) -> None:
    target = ["-gencode", "arch=compute_90,code=sm_90"]
    objects = [compiled(nvcc, source, *target) for source in sorted(CUDA_SOURCES.glob("*.cu"))]
    assert objects
    if torch.version.cuda is None or not (TORCH / "lib" / "libtorch_cuda.so").exists():
        pytest.skip("compiled, but not linked: this torch was built without CUDA")
    includes = [f"-I{path / 'include'}" for path in (*cuda_folders(), Path(nvcc).resolve().parents[1])]
    runtimes = sorted(
        library for folder in cuda_folders() for name in ("lib", "lib64")
        for library in (folder / name).glob("libcudart.so*")
    )  # fmt: skip
    if not runtimes:
        pytest.skip("compiled, but not linked: no libcudart")
    for source in sorted(CUDA_SOURCES.glob("*.cpp")):
        flags = ["-std=c++20", "-O0", "-fPIC", "-Wall", "-Werror=return-type", "-Wno-unknown-pragmas"]
        command = ["g++", *flags, *torch_includes(), *includes, "-c", str(source)]
        objects.append(compiled_once(command, source, ".o"))
    library = tmp_path / "kernels.so"
    needed = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda"]
    # Whatever is missing is to be found now, not at the first call.
    strict = ["-Wl,--no-as-needed", "-Wl,-z,now", f"-Wl,-rpath,{TORCH / 'lib'}"]
    run(["g++", "-shared", *map(str, objects), *strict, *needed, str(runtimes[0]), "-o", str(library)])
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(library), *OPERATORS], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-4000:]
    assert told.stdout.splitlines() == [f"{name} True" for name in OPERATORS]


def test_an_error_in_a_source_is_noticed(nvcc: str, tmp_path: Path) -> None:
    """So that the test above can fail."""
    broken = tmp_path / "broken.cu"
    broken.write_text('#include "launch.cuh"\nint x = wrangan::no_such_thing;\n')
    with pytest.raises(AssertionError, match="no_such_thing"):
        compiled(nvcc, broken, f"-I{CUDA_SOURCES}", "-arch=sm_90")
