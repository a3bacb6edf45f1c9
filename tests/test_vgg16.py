"""VGG16's features for precision and recall."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import write_photo
from tests.test_evaluate import needs_fidelity, records, run
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.weights import INCEPTION, TORCHVISION_VGG
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.metrics import vgg16
from wrangan_cli.engine.metrics.samples import image_set_features


class Seen(nn.Module):
    """Keeps what the network is given."""

    def forward(self, x: Tensor) -> Tensor:
        self.images = x
        return x.mean(dim=(2, 3))


@needs_fidelity
@pytest.mark.parametrize("side", [161, 224, 300])
def test_images_are_prepared_as_torch_fidelity_prepares_them(side: int) -> None:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    images = torch.rand(2, 3, side, side) * 2 - 1
    ours, theirs = Seen(), Seen()
    vgg16.VGG16Features(ours, torch.device("cpu"))(images)
    # Its `forward`, with all that comes before the network, around another network.
    extractor = SimpleNamespace(
        feature_extractor_internal_dtype=torch.float32,
        features_list=["fc2"],
        INPUT_IMAGE_SIZE=FeatureExtractorVGG16.INPUT_IMAGE_SIZE,
        model=theirs,
    )
    FeatureExtractorVGG16.forward(extractor, to_uint8(images))
    assert ours.images.shape == (2, 3, 224, 224)
    torch.testing.assert_close(ours.images, theirs.images, atol=1e-4, rtol=1e-4)


def small_file(folder: Path, monkeypatch: pytest.MonkeyPatch, leave_out: str = "") -> Path:
    """A file with the names and shapes of torchvision's, some kB: each tensor is one number, repeated."""
    from torchvision.models import vgg16 as network

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    state = {
        name: torch.tensor(1 / shape[1:].numel() if name.endswith("weight") else 0.01).expand(shape)
        for name, shape in shapes.items()
        if name != leave_out
    }
    folder.mkdir()
    path = folder / TORCHVISION_VGG.name
    torch.save(state, path)
    monkeypatch.setenv("WRANGAN_WEIGHTS", str(folder))
    monkeypatch.setattr(vgg16, "TORCHVISION_VGG", type(TORCHVISION_VGG)(path.name, sha256(path)))
    return path


def test_the_second_fully_connected_layer_of_torchvisions_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_file(tmp_path / "weights", monkeypatch)
    assert path.stat().st_size < 100_000
    features = vgg16.load_vgg16()
    kinds = [type(layer).__name__ for layer in features.network.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU"]
    assert not features.network.training
    found = features(torch.stack([torch.ones(3, 161, 161), torch.full((3, 161, 161), -1.0)]))
    assert found.shape == (2, 4096)
    assert found.min() >= 0
    state = torch.load(path, weights_only=True)
    last = features.network.classifier[0](features.network.features(torch.zeros(1, 3, 224, 224)).flatten(1))
    expected = (last.relu() @ state["classifier.3.weight"].T + state["classifier.3.bias"]).relu()
    torch.testing.assert_close(features.network(torch.zeros(1, 3, 224, 224)), expected)
    assert found[0].std() < 1e-5
    assert found[0, 0] > found[1, 0]


def test_without_the_file_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRANGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        WranganError, match=r"^precision-vgg16: the weights vgg16-397923af.pth.*get https://"
    ) as caught:
        vgg16.load_vgg16()
    assert "\n" not in str(caught.value)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_file(tmp_path / "weights", monkeypatch, leave_out="classifier.3.bias")
    with pytest.raises(FileError, match=r"not torchvision's VGG16 \(.*classifier.3.bias"):
        vgg16.load_vgg16()


@needs_fidelity
def test_the_command(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of both sets are VGG16's; the other metrics of the same call have Inception's."""
    from wrangan_cli.engine.metrics import inception

    asked: list[str] = []
    matrix = torch.randn(3 * 16 * 16, 8, generator=torch.Generator().manual_seed(7)) / 16

    def load(name: str, sign: float):
        def loaded(_device: object, wanted_by: str):
            asked.append(f"{name} for {wanted_by}")
            return lambda images: sign * images.clamp(-1, 1).flatten(1) @ matrix[:, : 8 if sign > 0 else 4]

        return loaded

    monkeypatch.setattr(inception, "load_inception", load("inception", 1.0))
    monkeypatch.setattr(vgg16, "load_vgg16", load("vgg16", -1.0))
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    for index in range(12):
        write_photo(tmp_path / "real" / f"{index}.png", side=16, seed=index)
    metrics = [word for name in ("recall", "recall-vgg16", "precision-vgg16") for word in ("--metric", name)]
    options = ["--model", tiny_folder, "--reference", tmp_path / "real", "--samples", 12, "--json"]
    for _ in range(2):  # the second time with features from the cache
        result = run(*metrics, *options)
        assert result.exit_code == 0, result.output
        found = {record["metric"]: record for record in records(result.stdout)}
        assert list(found) == ["recall", "recall-vgg16", "precision-vgg16"]
        assert "Inception" in found["recall"]["protocol"]
        assert "VGG16 fc2" in found["recall-vgg16"]["protocol"]
    assert asked[:2] == ["inception for recall", "vgg16 for recall-vgg16, precision-vgg16"]
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").glob("*.safetensors")} == {
        "inception",
        "vgg16",
    }


def test_features_of_two_networks_are_kept_apart(tmp_path: Path) -> None:
    from wrangan_cli.engine.data.image_sets import load_image_set

    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(write_photo(tmp_path / "a.png", side=16), "a.png")
    images = load_image_set([tmp_path / "set.zip"], 16, tmp_path / "decoded")
    kept = tmp_path / "features"
    kept.mkdir()
    made = [
        image_set_features(images, lambda x, n=n: x.new_full((len(x), 4), n), 4, kept, network=network)
        for n, network in ((1.0, INCEPTION), (2.0, TORCHVISION_VGG), (3.0, INCEPTION))
    ]
    assert [features[0, 0].item() for features in made] == [1, 2, 1]
