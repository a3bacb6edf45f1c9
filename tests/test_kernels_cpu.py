"""The CPU kernels against float64 formulas: values, gradients, second gradients; fresh inputs each run.

Skipped, with the reason, where the kernels could not be made: nothing else needs a compiler.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels.schemas import plane_dot

from tests.kernel_formulas import Function, agree, compare, filtered, ops, random_kernel

pytestmark = pytest.mark.usefixtures("cpu_kernels", "fresh_seed")


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    ("up", "down", "taps", "before", "after"),
    [(1, 1, 4, 1, 1), (1, 1, 4, 2, 1), (2, 1, 4, 2, 1), (1, 2, 4, 1, 1), (2, 2, 3, 1, 2), (4, 1, 8, 5, 2),
     (1, 4, 8, 3, 3), (1, 1, 4, -1, 2), (1, 1, 3, 2, -2), (2, 1, 5, -1, 4), (1, 1, 1, 0, 0)],
)  # fmt: skip
def test_upfirdn2d(up: int, down: int, taps: int, before: int, after: int, separable: bool) -> None:
    kernel = random_kernel(taps, separable)
    for shape in ((1, 3, 9, 12), (5, 2, 8, 17)):
        compare(
            lambda x: ops().upfirdn2d(x, kernel, up, down, before, after),
            lambda x: filtered(x, kernel, up, down, before, after),
            [torch.randn(shape)],
        )


def test_upfirdn2d_keeps_the_layout_and_takes_float64() -> None:
    kernel, x = random_kernel(4, True), torch.randn(2, 3, 10, 8)
    y = ops().upfirdn2d(x.contiguous(memory_format=torch.channels_last), kernel, 1, 1, 2, 1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    agree(y, filtered(x.double(), kernel, 1, 1, 2, 1))
    y = ops().upfirdn2d(x.double(), kernel, 1, 1, 2, 1)
    agree(y, filtered(x.double(), kernel, 1, 1, 2, 1), 1e-7)


def test_upfirdn2d_refuses_what_it_cannot_do() -> None:
    with pytest.raises(RuntimeError, match="square of 1 to 8 taps"):
        ops().upfirdn2d(torch.zeros(1, 1, 8, 8), torch.ones(9, 9), 1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="leaves nothing"):
        ops().upfirdn2d(torch.zeros(1, 1, 3, 3), torch.ones(4, 4), 1, 1, -2, -2)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        ops().upfirdn2d(torch.zeros(1, 1, 3, 3).half(), torch.ones(4, 4), 1, 1, 2, 2)


@pytest.mark.parametrize("shape", [(1, 3, 12, 10), (5, 4, 7, 9)])
@pytest.mark.parametrize("clamp", [-1.0, 0.7])
@pytest.mark.parametrize("parts", ["all", "filter", "tail", "bias", "own noise", "scale"])
def test_fir_act(shape: tuple[int, ...], clamp: float, parts: str) -> None:
    batch, channels, height, width = shape
    kernel = random_kernel(4, True) / 4 if parts in ("all", "filter", "own noise") else None
    before, after = (1, 1) if kernel is not None else (0, 0)
    sides = (height - 1, width - 1) if kernel is not None else (height, width)
    maps = batch if parts == "own noise" else 1
    noisy = parts in ("all", "tail", "own noise")
    noise = torch.randn(maps, 1, *sides) if noisy else None
    strength = torch.rand(1) if noisy else None
    scale = torch.rand(batch, channels) + 0.5 if parts in ("all", "tail", "scale") else None
    bias = torch.randn(channels) if parts in ("all", "tail", "bias", "own noise") else None

    def mine(x: Tensor, n: Tensor | None, a: Tensor | None, s: Tensor | None, b: Tensor | None) -> Tensor:
        return ops().fir_act(x, kernel, before, after, n, a, s, b, 0.2, 1.4, clamp)

    def formula(x: Tensor, n: Tensor | None, a: Tensor | None, s: Tensor | None, b: Tensor | None) -> Tensor:
        v = x if kernel is None else filtered(x, kernel, 1, 1, before, after)
        v = v if s is None else v * s[:, :, None, None]
        v = v if n is None or a is None else v + n * a
        v = v if b is None else v + b[None, :, None, None]
        y = torch.where(v > 0, v, 0.2 * v) * 1.4
        return y.clamp(-clamp, clamp) if clamp >= 0 else y

    compare(mine, formula, [torch.randn(shape), noise, strength, scale, bias])


@pytest.mark.parametrize("taps", [2, 4, 6])
def test_add_upsampled(taps: int) -> None:
    kernel = random_kernel(taps, True)
    extra = taps - 2
    for batch, height, width in ((1, 5, 8), (5, 4, 3)):
        compare(
            lambda y, skip: ops().add_upsampled(y, skip, kernel),
            lambda y, skip: y + filtered(skip, kernel, 2, 1, (extra + 1) // 2 + 1, extra // 2),
            [torch.randn(batch, 3, 2 * height, 2 * width), torch.randn(batch, 3, height, width)],
        )


CONVOLUTIONS = [
    # batch, inputs, outputs, height, width: by tiles (also cut ones), and where it does not pay
    (1, 5, 7, 33, 37),
    (5, 3, 4, 32, 32),
    (2, 8, 9, 64, 64),
    (1, 130, 20, 16, 16),
    (3, 17, 8, 128, 32),
    (2, 6, 5, 8, 8),
    # small planes: by the definition, columns of several images beside each other
    (5, 40, 19, 3, 3),
    (1, 70, 33, 4, 4),
    (3, 20, 21, 2, 5),
    # more columns than a block of them
    (3, 5, 6, 8, 8),
    (2, 6, 5, 12, 16),
]


@pytest.mark.parametrize("scales", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_conv3x3(shape: tuple[int, ...], per_image: bool, scales: tuple[bool, bool]) -> None:
    batch, inputs, outputs, height, width = shape
    weight = torch.randn(*((batch,) if per_image else ()), outputs, inputs, 3, 3)
    scale_in = torch.randn(batch, inputs) if scales[0] else None
    scale_out = torch.rand(batch, outputs) + 0.5 if scales[1] else None

    def formula(x: Tensor, w: Tensor, s: Tensor | None, d: Tensor | None) -> Tensor:
        x = x if s is None else x * s[:, :, None, None]
        y = torch.cat([F.conv2d(x[i : i + 1], w[i] if per_image else w, padding=1) for i in range(batch)])
        return y if d is None else y * d[:, :, None, None]

    inputs_given = [torch.randn(batch, inputs, height, width), weight, scale_in, scale_out]
    compare(lambda x, w, s, d: ops().conv3x3(x, w, s, d, False), formula, inputs_given)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_conv3x3_up(shape: tuple[int, ...], per_image: bool, scales: bool) -> None:
    batch, inputs, outputs, height, width = shape
    weight = torch.randn(*((batch,) if per_image else ()), outputs, inputs, 3, 3)
    scale_in = torch.randn(batch, inputs) if scales else None
    scale_out = torch.rand(batch, outputs) + 0.5 if scales else None

    def formula(x: Tensor, w: Tensor, s: Tensor | None, d: Tensor | None) -> Tensor:
        x = x if s is None else x * s[:, :, None, None]
        own = [(w[i] if per_image else w).transpose(0, 1) for i in range(batch)]
        y = torch.cat([F.conv_transpose2d(x[i : i + 1], own[i], stride=2) for i in range(batch)])
        return y if d is None else y * d[:, :, None, None]

    given = [torch.randn(batch, inputs, height, width), weight, scale_in, scale_out]
    compare(lambda x, w, s, d: ops().conv3x3_up(x, w, s, d, False), formula, given)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (62, 67)])
def test_gradient_in_many_weights(height: int, width: int, per_image: bool) -> None:
    """With as many channels and pixels as conv3x3_up's own gradient in the weights asks for."""
    x, grad = torch.randn(1, 130, height, width), torch.randn(1, 129, 2 * height + 1, 2 * width + 1)
    weight = torch.zeros(130, 129, 3, 3, dtype=torch.float64, requires_grad=True)
    y = F.conv_transpose2d(x.double(), weight, stride=2)
    (expected,) = torch.autograd.grad(y, weight, grad.double())
    found = ops().conv3x3_up_weight_grad(x, grad, None, None, per_image)
    agree(found[0] if per_image else found, expected.transpose(0, 1))


@pytest.mark.parametrize("channels", [(9, 6), (129, 128)])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (18, 64), (16, 16), (6, 7)])
def test_convolutions_of_a_gradient_are_the_gradients(
    height: int, width: int, channels: tuple[int, int]
) -> None:
    weight = torch.randn(2, *channels, 3, 3)

    def formula(g: Tensor, w: Tensor) -> Tensor:
        return torch.cat([F.conv_transpose2d(g[i : i + 1], w[i], padding=1) for i in range(2)])

    def formula_down(g: Tensor, w: Tensor) -> Tensor:
        return torch.cat([F.conv2d(g[i : i + 1], w[i].transpose(0, 1), stride=2) for i in range(2)])

    grad = torch.randn(2, channels[0], height, width)
    compare(lambda g, w: ops().conv3x3(g, w, None, None, True), formula, [grad, weight])
    grad = torch.randn(2, channels[0], 2 * height + 1, 2 * width + 1)
    compare(lambda g, w: ops().conv3x3_up(g, w, None, None, True), formula_down, [grad, weight])


def test_an_image_does_not_depend_on_its_batch_nor_on_the_threads() -> None:
    x, weight, grad = torch.randn(5, 24, 32, 32), torch.randn(40, 24, 3, 3), torch.randn(5, 40, 32, 32)
    whole = ops().conv3x3(x, weight, None, None, False)
    alone = torch.cat([ops().conv3x3(x[i : i + 1], weight, None, None, False) for i in range(5)])
    assert torch.equal(whole, alone)
    kernels = ops().conv3x3_weight_grad(x, grad, None, None, True)
    each = [ops().conv3x3_weight_grad(x[i : i + 1], grad[i : i + 1], None, None, True) for i in range(5)]
    assert torch.equal(kernels, torch.cat(each))
    summed = ops().conv3x3_weight_grad(x, grad, None, None, False)
    torch.set_num_threads(3)
    try:
        assert torch.equal(ops().conv3x3(x, weight, None, None, False), whole)
        assert torch.equal(ops().conv3x3_weight_grad(x, grad, None, None, False), summed)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_small_planes_do_not_depend_on_their_batch_nor_on_the_threads(up: bool, per_image: bool) -> None:
    convolve = ops().conv3x3_up if up else ops().conv3x3
    correlate = ops().conv3x3_up_weight_grad if up else ops().conv3x3_weight_grad
    x, side = torch.randn(5, 300, 4, 4), 9 if up else 4
    grad, weight = torch.randn(5, 200, side, side), torch.randn(*((5,) if per_image else ()), 200, 300, 3, 3)

    def everything(rows: slice) -> list[Tensor]:
        own = weight[rows] if per_image else weight
        found = [convolve(x[rows], own, None, None, False), convolve(grad[rows], own, None, None, True)]
        return [*found, correlate(x[rows], grad[rows], None, None, True)]

    whole = everything(slice(None))
    for i in range(5):
        assert all(map(torch.equal, everything(slice(i, i + 1)), (part[i : i + 1] for part in whole)))
    torch.set_num_threads(3)
    try:
        assert all(map(torch.equal, everything(slice(None)), whole))
    finally:
        torch.set_num_threads(1)


def test_every_number_is_written() -> None:
    """Memory of a result is what it was before: NaN here, by PyTorch's switch for uninitialised memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        x, weight = torch.randn(2, 5, 37, 35), torch.randn(6, 5, 3, 3)
        assert torch.empty(3).isnan().all()
        kernel = random_kernel(4, False)
        results = [
            ops().conv3x3(x, weight, None, None, False),
            ops().conv3x3_weight_grad(x, torch.randn(2, 6, 37, 35), None, None, True),
            ops().conv3x3_up(x, weight, None, None, False),
            ops().conv3x3_up(x, weight.transpose(0, 1), None, None, True),
            ops().conv3x3_up_weight_grad(x, torch.randn(2, 6, 75, 71), None, None, True),
            *(
                operator(*arguments)
                for up, side in ((False, 4), (True, 9))
                for operator, arguments in small_planes(up, side)
            ),
            *(result for fir in (None, kernel) for result in whole_layers(fir)),
            *ops().random_weight(weight, None, torch.randn(2, 6, 5, 3, 3)),
            ops().random_weight_backward(
                torch.randn(2, 6, 5, 3, 3), torch.randn(2, 6, 5), torch.randn(2, 6, 5, 3, 3), weight
            ),
            ops().upfirdn2d(x, kernel, 2, 1, 2, 1),
            *ops().fir_act_backward(x, x, kernel, 2, 1, None, 0.2, 1.0, -1.0, 37, 35),
            ops().fir_act(x, None, 0, 0, None, None, None, None, 0.2, 1.0, -1.0),
            ops().plane_dot(x, x),
        ]
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


def small_planes(up: bool, side: int) -> list[tuple[Function, tuple[Any, ...]]]:
    """The three convolutions of small planes, with what they are called with."""
    x, grad, weight = torch.randn(3, 5, 4, 4), torch.randn(3, 6, side, side), torch.randn(6, 5, 3, 3)
    convolve = ops().conv3x3_up if up else ops().conv3x3
    correlate = ops().conv3x3_up_weight_grad if up else ops().conv3x3_weight_grad
    return [
        (convolve, (x, weight, None, None, False)),
        (convolve, (grad, weight, None, None, True)),
        (correlate, (x, grad, None, None, True)),
    ]


def whole_layers(fir: Tensor | None) -> list[Tensor]:
    """All results of styled_conv and to_rgb, and of their gradients."""
    x, weight, energy, style = (
        torch.randn(2, 5, 6, 6),
        torch.randn(6, 5, 3, 3),
        torch.rand(6, 5),
        torch.randn(2, 5),
    )
    side = 6 if fir is None else 12
    noise, strength, bias = torch.randn(1, 1, side, side), torch.rand(1), torch.randn(6)
    numbers = (fir, *((0, 0) if fir is None else (1, 1)), 0.2, 1.4, -1.0)
    y, mid, demod = ops().styled_conv(x, weight, energy, style, noise, strength, bias, *numbers)
    given = (torch.randn_like(y), y, mid, demod, x, weight, energy, style, noise, strength)
    found = [y, mid, demod, *ops().styled_conv_backward(*given, *numbers, [True] * 7)]
    skip, rows = None if fir is None else torch.randn(2, 3, 3, 3), torch.randn(3, 5)
    image = ops().to_rgb(x, rows, style, torch.randn(3), skip, fir, 1.0)
    return [
        *found,
        image,
        *ops().to_rgb_backward(torch.randn_like(image), x, rows, style, torch.randn(3), fir, 1.0, [True] * 5),
    ]


def test_plane_dot() -> None:
    compare(plane_dot, lambda a, b: (a * b).sum((2, 3)), [torch.randn(3, 4, 9, 15) for _ in "ab"])


def test_shapes_without_computing() -> None:
    """What torch.compile sees: the fake kernels give the shapes, types and layouts of the real ones."""
    x, weight = torch.randn(2, 5, 32, 33), torch.randn(6, 5, 3, 3)
    kernel, bias = random_kernel(4, True), torch.randn(5)
    energy, noise = torch.rand(6, 5), torch.randn(1, 1, 64, 66)
    layer = (
        x,
        weight,
        energy,
        x[:, :, 0, 0],
        noise,
        torch.rand(1),
        torch.randn(6),
        kernel,
        1,
        1,
        0.2,
        1.4,
        -1.0,
    )
    y, mid, demod = ops().styled_conv(*layer)
    made = (torch.randn_like(y), y, mid, demod)
    calls = {
        "upfirdn2d": (x, kernel, 2, 1, 2, 1),
        "fir_act": (x, kernel, 2, 1, None, None, None, bias, 0.2, 1.4, -1.0),
        "add_upsampled": (torch.randn(2, 5, 64, 66), x, kernel),
        "conv3x3": (x, weight, None, None, False),
        "conv3x3_weight_grad": (x, torch.randn(2, 6, 32, 33), None, None, True),
        "conv3x3_up": (x, weight, None, None, False),
        "conv3x3_up_weight_grad": (x, torch.randn(2, 6, 65, 67), None, None, True),
        "plane_dot": (x, x),
        "styled_conv": layer,
        "styled_conv_backward": (*made, *layer[:6], *layer[7:], [True] * 7),
        "to_rgb": (x, weight[:3, :, 0, 0].contiguous(), x[:, :, 0, 0], bias[:3], None, None, -1.0),
        "to_rgb_backward": (
            torch.randn(2, 3, 32, 34),
            torch.randn(2, 5, 32, 34),
            weight[:3, :, 0, 0].contiguous(),
            x[:, :, 0, 0],
            bias[:3],
            kernel,
            1.0,
            [True, True, True, True, True],
        ),
        "random_weight": (weight, weight, torch.randn(2, 6, 5, 3, 3)),
        "random_weight_backward": (
            torch.randn(2, 6, 5, 3, 3),
            torch.randn(2, 6, 5),
            torch.randn(2, 6, 5, 3, 3),
            weight,
        ),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(
            getattr(ops(), name).default, arguments, test_utils=("test_schema", "test_faketensor")
        )
