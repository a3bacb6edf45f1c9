"""The bodies of the CUDA kernels on the CPU: builds tests/kernels_cuda_driver.cpp with g++, calls it.

Every output lies in a buffer of NaNs, which must all be overwritten and none beyond them; every
input lies between NaNs, so that a number from outside would show in the result. Each call is made
twice, with the threads of each block in the one order and in the other: the bits must be the same.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

ROOT = Path(__file__).parents[1]
CUDA_SOURCES = ROOT / "kernels" / "wrangan_kernels" / "cuda"
DRIVER = Path(__file__).with_name("kernels_cuda_driver.cpp")
OPERATORS = Path(__file__).with_name("kernels_cuda_operators.cpp")
LAUNCHER = Path(__file__).with_name("kernels_cuda_launcher.h")
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GUARD = 64
# A misaligned pack or a bad index ends the process; no library is needed for that.
CHECKS = "-fsanitize=alignment,bounds,signed-integer-overflow,shift"
FLAGS = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", CHECKS, "-fsanitize-undefined-trap-on-error"]


class Geometry(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_height", ctypes.c_int),
        ("in_width", ctypes.c_int),
        ("out_height", ctypes.c_int),
        ("out_width", ctypes.c_int),
        ("channels_last", ctypes.c_int),
        ("taps", ctypes.c_int),
        ("before", ctypes.c_int),
        ("flip", ctypes.c_int),
    ]


class Act(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("slope", "gain", "clamp")]


class Weights(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("mu", "std", "epsilon", "style")),
        *(
            (name, ctypes.c_int)
            for name in ("epsilon_kind", "epsilon_per_image", "batch", "outputs", "inputs", "area")
        ),
        ("scale", ctypes.c_float),
    ]


def torch_includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [f"-I{path}" for path in include_paths()]


def run(command: list[str]) -> str:
    """What a command says on stdout; AssertionError with its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def compiled_once(command: list[str], source: Path, suffix: str) -> Path:
    """What `command`, which says no `-o`, makes of `source`, kept in the system's folder for temporary files.

    Made again where the command, the compiler, torch, the CUDA sources or those of the tests are others.
    AssertionError with what the compiler says where it fails.
    """
    told = hashlib.sha256(f"{torch.__version__} {command} {run([command[0], '--version'])}".encode())
    for path in [source, DRIVER, OPERATORS, LAUNCHER, *sorted(CUDA_SOURCES.iterdir())]:
        told.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"wrangan-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    result = folder / f"{source.stem}-{told.hexdigest()[:16]}{suffix}"
    with FileLock(folder / f"{source.name}.lock"):
        if not result.exists():
            made = result.with_suffix(f".part{suffix}")
            run([*command, "-o", str(made)])
            made.replace(result)
    return result


def built(driver: Path, flags: list[str], link: list[str]) -> Path:
    """A library of `driver` and the bodies; skips without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the kernels' bodies with")
    includes = [f"-I{CUDA_SOURCES}", *torch_includes()]
    return compiled_once([compiler, *flags, *includes, str(driver), *link], driver, ".so")


def library() -> ctypes.CDLL:
    """One function a kernel (tests/kernels_cuda_driver.cpp)."""
    driver = ctypes.CDLL(str(built(DRIVER, FLAGS, [])))
    driver.error.restype = ctypes.c_char_p
    return driver


def operators_library() -> Path:
    """The operators themselves, for tensors of the CPU (tests/kernels_cuda_operators.cpp)."""
    from torch.utils.cpp_extension import library_paths

    link = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    # Most of the time of these tests goes into PyTorch: optimising the bodies takes longer than it saves.
    return built(OPERATORS, [*FLAGS, "-O0"], [*link, "-ltorch", "-ltorch_cpu", "-lc10"])


def guarded(values: Tensor, offset: int = 0) -> Tensor:
    """The same numbers and layout, between NaNs; `offset` numbers away from a place of good alignment."""
    start = GUARD + offset
    buffer = torch.full((values.numel() + 2 * start,), torch.nan, dtype=values.dtype)
    # Of the layout, but not of the place: a copy is dense.
    inside = buffer.as_strided(values.shape, values.stride(), start)
    return inside.copy_(values)


def poisoned(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False, offset: int = 0
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return guarded(torch.empty(shape, dtype=dtype, memory_format=layout).fill_(torch.nan), offset)


def surroundings_kept(out: Tensor) -> bool:
    storage = torch.tensor([], dtype=out.dtype).set_(out.untyped_storage())
    start = out.storage_offset()
    around = torch.cat([storage[:start], storage[start + out.numel() :]])
    return bool(around.isnan().all())


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def both_orders(
    driver: ctypes.CDLL, outputs: Callable[[], list[Tensor]], call: Callable[..., int | None]
) -> list[Tensor]:
    """Fresh outputs filled by `call(*outputs)`: complete, in their bounds, the same in both orders."""
    results = []
    for order in (1, -1):
        driver.set_order(order)
        made = outputs()
        for out in made if order < 0 else []:
            out.fill_(12345.0)  # another poison: what is not written differs between the two
        call(*made)
        driver.set_order(1)
        assert driver.count_blocks() > 0
        assert driver.error() == b""
        assert all(surroundings_kept(out) for out in made)
        results.append(made)
    first, second = results
    for one, other in zip(first, second, strict=True):
        same = (one == other) | (one.isnan() & other.isnan())
        assert bool(same.all()), "the result depends on the order of threads, or is not complete"
    return first


class Fir:
    """One shape of FIR: of maps (B, C, H, W) and a kernel (taps, taps)."""

    def __init__(
        self,
        driver: ctypes.CDLL,
        x: Tensor,
        kernel: Tensor | None,
        sides: tuple[int, int],
        before: int = 0,
        flip: bool = True,
        offset: int = 0,
    ) -> None:
        self.driver, self.offset, self.dtype = driver, offset, x.dtype
        self.kernel = None if kernel is None else guarded(kernel)
        self.last = not x.is_contiguous()
        taps = 1 if kernel is None else kernel.shape[0]
        self.shape = (*x.shape[:2], *sides)
        self.geometry = Geometry(*x.shape[:4], *sides, int(self.last), taps, before, int(flip))
        self.begin = (KINDS[x.dtype], ctypes.byref(self.geometry))

    def input(self, x: Tensor) -> Tensor:
        return guarded(x, self.offset)

    def output(self, sides: tuple[int, int] | None = None) -> Tensor:
        shape = self.shape if sides is None else (*self.shape[:2], *sides)
        return poisoned(shape, self.dtype, self.last, self.offset)

    def upfirdn2d(self, x: Tensor, up: int, down: int, scale: Tensor | None = None) -> Tensor:
        x = self.input(x)
        return both_orders(self.driver, lambda: [self.output()], lambda out: self.driver.run_upfirdn2d(
            *self.begin, pointer(self.kernel), up, down, pointer(x), pointer(scale), pointer(out)
        ))[0]  # fmt: skip

    def add_upsampled(self, y: Tensor, skip: Tensor) -> Tensor:
        y, skip = self.input(y), self.input(skip)
        return both_orders(self.driver, lambda: [self.output()], lambda out: self.driver.run_add_upsampled(
            *self.begin, pointer(self.kernel), pointer(y), pointer(skip), pointer(out)
        ))[0]  # fmt: skip

    def fir_act(
        self,
        x: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        noise: Tensor | None,
        strength: Tensor | None,
        act: Act,
    ) -> Tensor:
        x = self.input(x)
        per_image = int(noise is not None and noise.shape[0] > 1)
        return both_orders(self.driver, lambda: [self.output()], lambda out: self.driver.run_fir_act(
            *self.begin, pointer(self.kernel), pointer(x), pointer(scale), pointer(bias),
            pointer(noise), pointer(strength), per_image, ctypes.byref(act), pointer(out)
        ))[0]  # fmt: skip

    def act_grad(
        self, grad: Tensor, y: Tensor, scale: Tensor | None, act: Act, want_x: bool = True
    ) -> list[Tensor]:
        """[grad_pre] or [grad_pre, grad_x]."""
        grad, y = self.input(grad), self.input(y)

        def call(grad_pre: Tensor, grad_x: Tensor | None = None) -> None:
            self.driver.run_act_grad(
                *self.begin, pointer(grad), pointer(y), pointer(scale),
                ctypes.byref(act), pointer(grad_x), pointer(grad_pre)
            )  # fmt: skip

        return both_orders(self.driver, lambda: [self.output() for _ in range(1 + want_x)], call)

    def fir_act_grad(self, grad: Tensor, y: Tensor, scale: Tensor | None, act: Act) -> list[Tensor]:
        """[grad_x, grad_pre]."""
        grad, y = self.input(grad), self.input(y)

        def call(grad_x: Tensor, grad_pre: Tensor) -> None:
            done = self.driver.run_fir_act_grad(
                *self.begin, pointer(self.kernel), pointer(grad), pointer(y), pointer(scale),
                ctypes.byref(act), pointer(grad_x), pointer(grad_pre)
            )  # fmt: skip
            assert done == 1

        sides = (self.geometry.in_height, self.geometry.in_width)
        return both_orders(self.driver, lambda: [self.output(), self.output(sides)], call)


class Modulated:
    """One call's tensors: μ (O, I, k, k), σ, ε, style (B, I)."""

    def __init__(
        self,
        driver: ctypes.CDLL,
        mu: Tensor,
        std: Tensor | None,
        epsilon: Tensor | None,
        style: Tensor,
        scale: float,
        offset: int = 0,
    ) -> None:
        self.driver, self.offset, self.shape = driver, offset, (style.shape[0], *mu.shape)
        self.kept = [None if t is None else guarded(t, offset) for t in (mu, std, epsilon, style)]
        kind, per_image = (0, False) if epsilon is None else (KINDS[epsilon.dtype], epsilon.ndim == 5)
        self.per_image = per_image
        self.weights = Weights(
            *(pointer(t) for t in self.kept), kind, int(per_image), style.shape[0], *mu.shape[:2],
            mu.shape[2] * mu.shape[3], scale
        )  # fmt: skip

    def forward(self, dtype: torch.dtype, demodulate: bool) -> list[Tensor]:
        """[weight] or [weight, demod]."""

        def outputs() -> list[Tensor]:
            made = [poisoned(self.shape, dtype, offset=self.offset)]
            return [*made, poisoned(self.shape[:2], torch.float32)] if demodulate else made

        def call(weight: Tensor, demod: Tensor | None = None) -> None:
            self.driver.run_modulated_weight(
                KINDS[dtype], ctypes.byref(self.weights), pointer(weight), pointer(demod)
            )

        return both_orders(self.driver, outputs, call)

    def backward(
        self, grad: Tensor, demod: Tensor | None, needed: list[bool], group: int
    ) -> dict[str, Tensor]:
        """Gradients by name: of what is `needed` (μ, σ, ε, style)."""
        grad = guarded(grad, self.offset)
        mu, _, epsilon, style = self.kept
        assert mu is not None
        assert style is not None
        over_batch = needed[0] or needed[1] or (needed[2] and not self.per_image)
        groups = mu.shape[0] if over_batch else -(-mu.shape[0] // group)
        names = [n for n, need in zip(("mu", "std", "epsilon", "style"), needed, strict=True) if need]

        def outputs() -> list[Tensor]:
            made = {n: poisoned(tuple(mu.shape), torch.float32, offset=self.offset) for n in ("mu", "std")}
            if epsilon is not None:
                dtype = epsilon.dtype if self.per_image else torch.float32
                made["epsilon"] = poisoned(tuple(epsilon.shape), dtype, offset=self.offset)
            made["style"] = poisoned((groups, *style.shape), torch.float32)
            return [made[name] for name in names]

        def call(*out: Tensor) -> None:
            to = dict(zip(names, out, strict=True))
            self.driver.run_modulated_weight_grad(
                KINDS[grad.dtype], ctypes.byref(self.weights), pointer(grad), pointer(demod),
                *(pointer(to.get(name)) for name in ("mu", "std", "epsilon", "style")), int(over_batch), group
            )  # fmt: skip

        found = dict(zip(names, both_orders(self.driver, outputs, call), strict=True))
        if "style" in found:
            found["style"] = found["style"].sum(dim=0)
        return found


class Strips:
    """Maps (B, C, H, W) in channels_last, of the channels that packs are made of, in one type."""

    def __init__(
        self, driver: ctypes.CDLL, shape: Sequence[int], dtype: torch.dtype, offset: int = 0
    ) -> None:
        self.driver, self.dtype, self.offset = driver, dtype, offset
        self.batch, self.channels, self.height, self.width = shape
        sides = (self.height, self.width)
        self.geometry = Geometry(self.batch, self.channels, *sides, *sides, 1, 0, 0, 0)
        self.begin = (KINDS[dtype], ctypes.byref(self.geometry))

    def input(self, x: Tensor) -> Tensor:
        return guarded(x.to(self.dtype).contiguous(memory_format=torch.channels_last), self.offset)

    def output(self, channels: int, enlarged: int = 1) -> Tensor:
        shape = (self.batch, channels, enlarged * self.height, enlarged * self.width)
        return poisoned(shape, self.dtype, True, self.offset)

    def parts(self, numbers: int, a: Tensor, b: Tensor) -> Tensor:
        count = self.driver.count_parts(self.begin[1], a.element_size(), pointer(a), pointer(b))
        return poisoned((self.batch, count, numbers), torch.float32)

    def depthwise(self, x: Tensor, taps: Tensor, turned: bool) -> Tensor:
        """taps: (1 or B, C, 3, 3)."""
        x, taps = self.input(x), guarded(taps)
        per_image = int(len(taps) > 1)
        return both_orders(
            self.driver,
            lambda: [self.output(self.channels)],
            lambda out: self.driver.run_depthwise(
                *self.begin, pointer(x), pointer(taps), per_image, int(turned), pointer(out)
            ),
        )[0]

    def depthwise_taps(self, x: Tensor, grad: Tensor) -> Tensor:
        """(B, C, 3, 3)."""
        x, grad = self.input(x), self.input(grad)
        (parts,) = both_orders(
            self.driver,
            lambda: [self.parts(self.channels * 9, x, grad)],
            lambda out: self.driver.run_depthwise_taps(*self.begin, pointer(x), pointer(grad), pointer(out)),
        )
        return parts.sum(dim=1).reshape(self.batch, self.channels, 3, 3)

    def haar_up(self, x: Tensor, style: Tensor) -> Tensor:
        """x of four times the channels."""
        x, style = self.input(x), guarded(style)
        return both_orders(
            self.driver,
            lambda: [self.output(self.channels, enlarged=2)],
            lambda out: self.driver.run_haar_up(*self.begin, pointer(x), pointer(style), pointer(out)),
        )[0]

    def haar_up_grad(
        self, grad: Tensor, x: Tensor, style: Tensor, want_x: bool = True, want_style: bool = True
    ) -> list[Tensor]:
        """Of grad_x and grad_style (B, 4C) those that are wanted."""
        grad, x, style = self.input(grad), self.input(x), guarded(style)

        def outputs() -> list[Tensor]:
            made = [self.output(4 * self.channels)] if want_x else []
            return [*made, self.parts(4 * self.channels, x, grad)] if want_style else made

        def call(*out: Tensor) -> None:
            grad_x = pointer(out[0] if want_x else None)
            parts = pointer(out[-1] if want_style else None)
            self.driver.run_haar_up_grad(
                *self.begin, pointer(grad), pointer(x), pointer(style), grad_x, parts
            )

        made = both_orders(self.driver, outputs, call)
        return [*made[:-1], made[-1].sum(dim=1)] if want_style else made
