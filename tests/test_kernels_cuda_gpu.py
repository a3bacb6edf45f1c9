"""What only a GPU has: captured graphs, streams, no waiting, sizes beyond 2^31 numbers.

python -m pytest -m gpu tests/test_kernels_cuda_gpu.py tests/test_kernels_cuda_*operators.py
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels_cuda_formulas import depthwise, direct, haar_up

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_kernels")]
ops: Any = torch.ops.wrangan


class Layer:
    """One up-sampling layer of a generator, from w's style to the activation and back."""

    def __init__(self, batch: int = 3) -> None:
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.kernel = (torch.outer(line, line) / 16).cuda()
        self.mu, self.std = (torch.randn(16, 8, 3, 3).cuda() for _ in range(2))
        self.epsilon = torch.randn(batch, 16, 8, 3, 3).cuda().requires_grad_()
        self.style = (torch.randn(batch, 8) + 1).cuda().requires_grad_()
        self.x = torch.randn(batch, 16, 33, 33).cuda().requires_grad_()
        self.skip = torch.randn(batch, 16, 16, 16).cuda()

    @property
    def free(self) -> list[Tensor]:
        return [self.epsilon, self.style, self.x]

    def step(self) -> Tensor:
        weight, demod = ops.modulated_weight(self.mu, self.std, self.epsilon, self.style, 0.1, True, 6)
        y = ops.fir_act(self.x, self.kernel, 1, 1, None, None, demod.detach(), None, 0.2, 1.4, -1.0)
        y = ops.add_upsampled(y, self.skip, self.kernel)
        loss = y.square().mean() + weight.square().mul(torch.arange(3.0, device="cuda")).mean()
        for tensor, grad in zip(self.free, torch.autograd.grad(loss, self.free), strict=True):
            tensor.data.add_(grad, alpha=-0.1)
        return loss.detach()


class SeparableLayer:
    """An upsampling, a separable layer and the image of it at half the side, from the styles and back."""

    def __init__(self, batch: int = 3) -> None:
        self.x = torch.randn(batch, 64, 20, 20).cuda().contiguous(memory_format=torch.channels_last)
        self.style, self.depthwise = torch.randn(batch, 64).cuda(), torch.randn(batch, 16, 3, 3).cuda()
        self.mixing, self.noise = torch.randn(batch, 24, 16).cuda(), torch.randn(1, 1, 40, 40).cuda()
        self.bias, self.rows = torch.randn(24).cuda(), torch.randn(batch, 3, 24).cuda()
        for tensor in self.free:
            tensor.requires_grad_()

    @property
    def free(self) -> list[Tensor]:
        return [self.x, self.style, self.depthwise, self.mixing, self.noise, self.bias, self.rows]

    def step(self) -> Tensor:
        y = ops.haar_up(self.x, self.style)
        y = ops.separable_conv(y, self.depthwise, self.mixing, self.noise, self.bias, 0.2)
        loss = ops.pooled_pointwise(y, self.rows, self.bias[:3], 2).square().mean()
        for tensor, grad in zip(self.free, torch.autograd.grad(loss, self.free), strict=True):
            tensor.data.add_(grad, alpha=-0.01)
        return loss.detach()


LAYERS = pytest.mark.parametrize("kind", [Layer, SeparableLayer])


@LAYERS
def test_a_captured_step_is_the_step(kind: type[Layer] | type[SeparableLayer]) -> None:
    torch.manual_seed(0)
    layer = kind()
    start = [t.detach().clone() for t in layer.free]
    eager = torch.stack([layer.step() for _ in range(5)])
    ended = [t.detach().clone() for t in layer.free]

    def restart() -> None:
        for tensor, before in zip(layer.free, start, strict=True):
            tensor.data.copy_(before)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = layer.step()
    restart()
    replayed = []
    for _ in range(5):
        graph.replay()
        replayed.append(loss.clone())
    assert torch.equal(torch.stack(replayed), eager)
    for tensor, right in zip(layer.free, ended, strict=True):
        assert torch.equal(tensor, right)


@LAYERS
def test_nothing_waits_for_the_gpu(kind: type[Layer] | type[SeparableLayer]) -> None:
    layer = kind()
    layer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    """What is written late on a stream is read by a kernel of that stream."""
    kernel = torch.ones(1, 1).cuda()
    x = torch.zeros(4, 64, 256, 256).cuda()
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(3.0)
        got = ops.upfirdn2d(x, kernel, 1, 1, 0, 0)
    side.synchronize()
    assert bool((got == 3.0).all())


def test_the_same_bits_every_time() -> None:
    torch.manual_seed(0)
    layers = [Layer(), Layer()]
    for mine, other in zip(layers[0].free, layers[1].free, strict=True):
        other.data.copy_(mine)
    layers[1].mu, layers[1].std, layers[1].skip = layers[0].mu, layers[0].std, layers[0].skip
    for _ in range(10):
        assert torch.equal(layers[0].step(), layers[1].step())
    for mine, other in zip(layers[0].free, layers[1].free, strict=True):
        assert torch.equal(mine, other)


def test_the_same_bits_of_separable_layers() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(0)
        layers.append(SeparableLayer())
    for _ in range(10):
        assert torch.equal(layers[0].step(), layers[1].step())
    for mine, other in zip(layers[0].free, layers[1].free, strict=True):
        assert torch.equal(mine, other)


def test_separable_layers_follow_the_setting_of_products() -> None:
    """TF32 where PyTorch has it; and the check of a library is not misled by that."""
    from wrangan_kernels import verify

    x = torch.randn(1, 64, 32, 32).cuda().contiguous(memory_format=torch.channels_last)
    d, m, b = torch.randn(1, 64, 3, 3).cuda(), torch.randn(1, 64, 64).cuda(), torch.randn(64).cuda()
    whole = ops.separable_conv(x, d, m, None, b, 0.2)
    torch.set_float32_matmul_precision("high")
    try:
        rounded = ops.separable_conv(x, d, m, None, b, 0.2)
        assert verify.wrong("cuda") is None
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (rounded - whole).abs().max() <= 0.01 * whole.abs().max()


def test_separable_layers_compiled_whole() -> None:
    layer = SeparableLayer()

    def forward(*free: Tensor) -> Tensor:
        x, style, depthwise, mixing, noise, bias, rows = free
        y = ops.separable_conv(ops.haar_up(x, style), depthwise, mixing, noise, bias, 0.2)
        return ops.pooled_pointwise(y, rows, bias[:3], 2).square().mean()

    compiled = torch.compile(forward, fullgraph=True)
    right = torch.autograd.grad(forward(*layer.free), layer.free)
    got = torch.autograd.grad(compiled(*layer.free), layer.free)
    for one, other in zip(got, right, strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_whole() -> None:
    """torch.compile takes the operators into one graph, without a break."""
    layer = Layer()

    def forward(x: Tensor, style: Tensor) -> Tensor:
        weight, demod = ops.modulated_weight(layer.mu, layer.std, layer.epsilon, style, 0.1, True, 6)
        y = ops.fir_act(x, layer.kernel, 1, 1, None, None, demod, None, 0.2, 1.4, -1.0)
        return y.mean() + weight.square().mean()

    compiled = torch.compile(forward, fullgraph=True)
    right = torch.autograd.grad(forward(layer.x, layer.style), [layer.x, layer.style])
    got = torch.autograd.grad(compiled(layer.x, layer.style), [layer.x, layer.style])
    for one, other in zip(got, right, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_more_than_2_31_numbers(last: bool) -> None:
    batch, channels, side = 66, 512, 256
    needed = 2 * 2 * batch * channels * side**2
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    x = torch.empty(batch, channels, side, side, dtype=torch.bfloat16, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert x.numel() > 2**31
    for image in range(batch):
        x[image].normal_()
    kernel = torch.rand(4, 4, device="cuda")
    got = ops.upfirdn2d(x, kernel, 1, 1, 2, 1)
    for image, channel in ((0, 0), (63, 511), (64, 1), (65, 511)):
        right = direct(x[image : image + 1, channel : channel + 1].cpu(), kernel.cpu(), 1, 1, (2, 1))
        torch.testing.assert_close(got[image, channel].double().cpu(), right[0, 0], rtol=0.01, atol=0.05)


@pytest.mark.slow
def test_separable_layers_of_more_than_2_31_numbers() -> None:
    batch, channels, side = 66, 512, 256
    needed = 3 * 2 * batch * channels * side**2
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    layout = torch.channels_last
    x = torch.empty(batch, channels, side, side, dtype=torch.bfloat16, device="cuda", memory_format=layout)
    for image in range(batch):
        x[image].normal_()
    taps, bias = torch.randn(batch, channels, 3, 3, device="cuda"), torch.zeros(channels, device="cuda")
    got = ops.separable_conv(x, taps, torch.eye(channels, device="cuda")[None], None, bias, 1.0)
    for image in (0, 63, 65):
        right = depthwise(x[image : image + 1].cpu(), taps[image : image + 1].cpu())
        torch.testing.assert_close(got[image].double().cpu(), right[0], rtol=0.01, atol=0.05)
    del got
    style = torch.rand(batch, channels, device="cuda") + 0.5
    up = ops.haar_up(x, style)
    for image in (0, 63, 65):
        right = haar_up(x[image : image + 1].cpu(), style[image : image + 1].cpu())
        torch.testing.assert_close(up[image].double().cpu(), right[0], rtol=0.01, atol=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_gpu_than_the_current_one() -> None:
    x, kernel = torch.randn(1, 3, 8, 8), torch.rand(4, 4)
    got = ops.upfirdn2d(x.to("cuda:1"), kernel.to("cuda:1"), 1, 1, 2, 1)
    torch.testing.assert_close(got.double().cpu(), direct(x, kernel, 1, 1, (2, 1)), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="on cuda:0"):
        ops.upfirdn2d(x.to("cuda:1"), kernel.to("cuda:0"), 1, 1, 2, 1)
