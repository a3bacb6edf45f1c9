"""Device and seed: what cannot be used is said in one line."""

import pytest
import torch

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator, resolve_device, seeded_latents


@pytest.mark.parametrize("name", ["toaster", "meta", "hpu", "cuda:77", "cpu:x"])
def test_devices_that_cannot_compute(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}'") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


def test_devices_that_can() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert torch.zeros(1, device=resolve_device()).item() == 0


def test_a_latent_is_a_function_of_its_seed_alone() -> None:
    both = seeded_latents([3, 8], 5)
    assert torch.equal(both[1:], seeded_latents([8], 5))
    assert not torch.equal(both[0], both[1])


def test_a_seed_beyond_64_bits() -> None:
    with pytest.raises(UsageError, match="expected a 64-bit number"):
        random_generator(2**70)
