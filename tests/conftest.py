"""Tiny random models and photographs: no network, no GPU, no shared data."""

import atexit
import dataclasses
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wrangan_kernels import build, loader
from wrangan_kernels.caching import user_cache

from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

# No test uses the network, or what it finds in the user's cache: only the kernels that were made
# for all, and the weights that `make venv` fetched.
os.environ.setdefault(build.CACHE_ENVIRONMENT, str(build.cache_folder()))
_OWN_CACHE = Path(tempfile.mkdtemp(prefix="wrangan-tests-"))
atexit.register(shutil.rmtree, _OWN_CACHE, ignore_errors=True)
if (fetched := user_cache() / "carriers" / "inception").is_dir():
    (_OWN_CACHE / "carriers").mkdir()
    (_OWN_CACHE / "carriers" / "inception").symlink_to(fetched)
os.environ["WRANGAN_CACHE"] = str(_OWN_CACHE)
os.environ["WRANGAN_OFFLINE"] = "1"

SHARED = Path(os.environ.get("WRANGAN_SHARED", Path(__file__).parents[2] / "shared")) / "data"

TINY = StyleGAN2Config(
    resolution=16, channels={4: 16, 8: 12, 16: 8}, style_dim=16, mapping_layers=2, randomized_layers=3
)


def random_generator_network(config: StyleGAN2Config = TINY, seed: int = 0) -> StyleGAN2Generator:
    """A generator with random weights in which biases, noise strengths and σ matter too."""
    torch.manual_seed(seed)
    generator = StyleGAN2Generator(config)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("bias", "noise.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("conv.std"):
                parameter.copy_(torch.rand_like(parameter) * 0.2 + 0.05)
    return generator.eval()


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1234)


@pytest.fixture
def fresh_seed(_one_thread_and_seed: None) -> None:
    """Inputs that are new in each run; the seed is printed where a test fails."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)


@pytest.fixture
def cpu_kernels() -> None:
    """Skips the test where there are no compiled kernels."""
    if not loader.ready("cpu"):
        pytest.skip(f"no CPU kernels: {loader.describe('cpu')}")


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA kernels, which are off unless asked for."""
    monkeypatch.setenv(loader.ENVIRONMENT, "require")
    loader.forget()
    assert loader.ready("cuda"), "the CUDA kernels could not be built or loaded"
    yield
    monkeypatch.undo()
    loader.forget()


@pytest.fixture
def tiny_config() -> StyleGAN2Config:
    return TINY


@pytest.fixture
def tiny_generator() -> StyleGAN2Generator:
    return random_generator_network()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A model folder of 16 px with discriminator, without encoder and directions."""
    torch.manual_seed(1)
    return save_model(
        tmp_path / "tiny", random_generator_network(), Discriminator(TINY), perceptual="st-lpips-alex"
    )


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Model:
    return load_model(str(tiny_folder))


@pytest.fixture
def other_folder(tmp_path: Path) -> Path:
    """Another model of the same shape."""
    return save_model(tmp_path / "other", random_generator_network(seed=5), perceptual="st-lpips-alex")


@pytest.fixture
def plain_config() -> StyleGAN2Config:
    return dataclasses.replace(TINY, randomized_layers=0)


def write_photo(path: Path, side: int = 40, seed: int = 0) -> Path:
    """A smooth random picture, saved in the format of its suffix."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures: a.png, b.jpg, c.webp."""
    for seed, name in enumerate(("a.png", "b.jpg", "c.webp")):
        write_photo(tmp_path / "photos" / name, seed=seed)
    return tmp_path / "photos"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda_build"):
            # One process compiles, beside the others' tests, where each would wait for the same libraries.
            item.add_marker(pytest.mark.xdist_group("cuda_build"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no image data in {SHARED}"))
