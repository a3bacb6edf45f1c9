"""Compile the sources beside this file into one library per device, with the paths of
`torch.utils.cpp_extension`; never at import.

A library is cached under a key of everything that it depends on: torch's
version, the device (the processor's features, or a GPU's compute capability), the flags and
the sources. It is written completely or not at all, and processes that need it at the same time wait for
the first. A failure is recorded with the state of the machine, and not retried in the same state.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from wrangan_kernels.caching import exclusive, user_cache, why_not_writable

HERE = Path(__file__).parent
CACHE_ENVIRONMENT = "WRANGAN_KERNELS_CACHE"
TIME_LIMIT = 900
"""Seconds after which a compiler counts as broken."""
_CPU_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-w")
_CUDA_FLAGS = ("-O3", "-std=c++20", "--threads", "0", "-w")


class BuildError(RuntimeError):
    """Why there is no library, in one line."""


@dataclass(frozen=True)
class Recipe:
    """How the library for one device is built on this machine."""

    device: str
    """`cpu` or `cuda`."""
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    target: str
    """Target of the code: the processor and its features, or sm_90."""

    @property
    def key(self) -> str:
        """Name of the library, which changes with everything that it depends on."""
        digest = hashlib.sha256()
        for part in (
            torch.__version__,
            str(torch.version.cuda),
            platform.machine(),
            self.target,
            *self.flags,
        ):
            digest.update(part.encode() + b"\0")
        for path in sorted(self.sources):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return f"{self.device}-torch{torch.__version__}-{digest.hexdigest()[:16]}"

    @property
    def library(self) -> Path:
        """Path of the library, whether or not it exists."""
        return cache_folder() / f"{self.key}.so"

    @property
    def record(self) -> Path:
        """File that records a failure."""
        return cache_folder() / f"{self.key}.failed.json"


def cache_folder() -> Path:
    """$WRANGAN_KERNELS_CACHE, else `kernels` in the suite's cache."""
    own = os.environ.get(CACHE_ENVIRONMENT)
    return Path(own) if own else user_cache() / "kernels"


def recipe(device: str) -> Recipe:
    """The recipe for `cpu` or `cuda` (the current GPU, or sm_90 if there is none)."""
    if device == "cpu":
        native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
        flags = (*_CPU_FLAGS, native, *(("-fopenmp",) if platform.system() != "Darwin" else ()))
        sources = tuple(sorted(path for path in (HERE / "cpu").iterdir() if path.suffix in (".cpp", ".h")))
        return Recipe("cpu", sources, flags, _processor())
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    arch = f"{major}{minor}"
    flags = (*_CUDA_FLAGS, "-gencode", f"arch=compute_{arch},code=sm_{arch}")
    folder = HERE / "cuda"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    sources = tuple(path for path in found if path.suffix in (".cu", ".cuh", ".cpp", ".h"))
    return Recipe("cuda", sources, flags, f"sm_{arch}")


def _processor() -> str:
    """Name and features of the processor, which -march=native depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return " ".join(sorted({line for line in lines if line.startswith(wanted)}))
    return f"{platform.processor()} {platform.platform()}"


def machine_state(device: str) -> str:
    """What a failure depends on besides the key: the compilers, and when they were last changed."""
    parts = [os.environ.get("CXX", ""), os.environ.get("CUDA_HOME", "")]
    for program in [_compiler_name(), *([str(_nvcc())] if device == "cuda" else [])]:
        path = shutil.which(program) if program else None
        if path is None:
            parts.append("none")
            continue
        stat = os.stat(path)
        parts.append(f"{os.path.realpath(path)} {stat.st_mtime_ns} {stat.st_size}")
    return " | ".join(parts)


def remembered_failure(wanted: Recipe) -> str | None:
    """Why the library could not be built, if that happened in this state of the machine."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(wanted.record.read_text())
        if record["state"] == machine_state(wanted.device):
            return str(record["reason"])
    return None


def remember_failure(wanted: Recipe, reason: str) -> None:
    """Record a failure, so that it is not retried at every start; no effect if the folder is not writable."""
    with contextlib.suppress(OSError):
        wanted.record.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"state": machine_state(wanted.device), "reason": reason})
        handle, name = tempfile.mkstemp(dir=wanted.record.parent)
        with open(handle, "w") as stream:
            stream.write(text)
        os.replace(name, wanted.record)


@contextlib.contextmanager
def building(wanted: Recipe) -> Iterator[None]:
    """A block that only one process at a time enters for a library, while others wait. BuildError if the
    cache is not writable."""
    folder = cache_folder()
    if cause := why_not_writable(folder):
        raise BuildError(cause)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / f"{wanted.key}.lock"))
        except OSError as error:
            raise BuildError(f"{folder} cannot be written ({error.strerror})") from error
        yield


def build(wanted: Recipe) -> Path:
    """Compile and link, regardless of the cache; raises BuildError. Returns the library."""
    target = wanted.library
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
            made = Path(work) / target.name
            for command in commands(wanted, made):
                _run(command)
            os.replace(made, target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror or error}") from error
    wanted.record.unlink(missing_ok=True)
    return target


def commands(wanted: Recipe, library: Path) -> list[list[str]]:
    """The commands that build `library`, in order; raises BuildError if a tool is missing."""
    compiler = _compiler()
    # It prints a message that there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise BuildError(f"torch.utils.cpp_extension: {error}") from error
    include = [f"-I{HERE}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    linked = [f"-L{path}" for path in cpp_extension.library_paths()]
    defines = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    units = [str(path) for path in wanted.sources if path.suffix in (".cpp", ".cu")]
    if not units:
        raise BuildError(f"no sources for {wanted.device}")
    if wanted.device == "cpu":
        undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        command = [*compiler, *wanted.flags, *defines, *include, *units, "-o", str(library)]
        return [[*command, *linked, "-ltorch_cpu", "-lc10", *undefined]]
    nvcc = _nvcc()
    if nvcc is None:
        raise BuildError("no nvcc was found")
    _check_version(nvcc)
    # The headers of the toolkit, and those in the wheels of NVIDIA's packages.
    toolkit = nvcc.parent.parent / "include"
    include += [f"-I{path}" for path in (toolkit, toolkit / "cccl") if path.is_dir()]
    include = [part.replace("-isystem", "-I", 1) for part in include]
    host = ["-ccbin", compiler[0], "-Xcompiler", "-fPIC"]
    # libtorch_cuda has already loaded libcudart: link to that, so that there is only one runtime.
    command = [str(nvcc), *wanted.flags, *defines, *include, *host, "-shared", "-cudart", "none"]
    return [
        [*command, *units, "-o", str(library), *linked, "-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]
    ]


def _compiler_name() -> str:
    if own := os.environ.get("CXX"):
        return shlex.split(own)[0]
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")


def _compiler() -> list[str]:
    name = _compiler_name()
    path = shutil.which(name) if name else None
    if path is None:
        raise BuildError(f"no C++ compiler was found{f' ({name})' if name else ''}")
    return [path, *shlex.split(os.environ.get("CXX", ""))[1:]]


def _nvcc() -> Path | None:
    """nvcc in $CUDA_HOME, in NVIDIA's wheels for torch's version of CUDA, on the PATH, or in the usual
    place."""
    major = (torch.version.cuda or "0").split(".")[0]
    site = Path(sysconfig.get_path("purelib"))
    beside = Path(torch.__file__).parents[1]
    on_path = shutil.which("nvcc")
    places = [Path(home) / "bin" / "nvcc" for home in (os.environ.get("CUDA_HOME"),) if home]
    places += [folder / "nvidia" / f"cu{major}" / "bin" / "nvcc" for folder in (site, beside)]
    places += [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((place for place in places if place.is_file()), None)


def _check_version(nvcc: Path) -> None:
    """nvcc must be of the major version of CUDA that torch was made with."""
    said = re.search(r"release (\d+)\.(\d+)", _run([str(nvcc), "--version"]))
    wanted = torch.version.cuda
    if wanted is None:
        raise BuildError("this torch was made without CUDA")
    if said is None or said[1] != wanted.split(".")[0]:
        have = f"{said[1]}.{said[2]}" if said else "unknown"
        raise BuildError(f"{nvcc} is of CUDA {have}, torch of {wanted}")


def _run(command: list[str]) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} was not done after {TIME_LIMIT} s") from error
    except OSError as error:
        raise BuildError(f"{name} could not be run ({error.strerror})") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        telling = next(
            (line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message"
        )
        raise BuildError(f"{name} failed with {done.returncode}: {telling[:300]}")
    return done.stdout
