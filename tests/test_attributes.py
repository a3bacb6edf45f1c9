"""The attribute net: shape, file, labels, loss, training, accuracy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.data.image_sets import ImageSet
from wrangan_cli.engine.models.attributes import (
    AttributeConfig,
    AttributeNet,
    attribute_logits,
    load_attributes,
    save_attributes,
)
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.training.attribute_settings import AttributeSettings
from wrangan_cli.engine.training.attributes import (
    Labels,
    augment_photos,
    evaluate_attributes,
    masked_loss,
    read_labels,
    train_attributes,
)
from wrangan_cli.engine.training.snapshots import list_snapshots

QUICK = AttributeSettings(
    attributes="Bright,Red", resolution=16, widths="8,8", images=1920, batch=32, lr=0.01, augment=0.0
)


def bright_images(count: int = 400, seed: int = 0) -> tuple[ImageSet, Labels]:
    """Noise whose brightness (known for all) and redness (known for half) are labels."""
    rng = np.random.default_rng(seed)
    bright, red = rng.random(count) < 0.5, rng.random(count) < 0.3
    pixels = rng.normal(90, 20, (count, 16, 16, 3)) + 60 * bright[:, None, None, None]
    pixels[..., 0] += 80 * red[:, None, None]
    values = np.stack([bright, red], axis=1).astype(np.float32)
    values[::2, 1] = np.nan
    images = ImageSet(pixels.clip(0, 255).astype(np.uint8), [f"{i}.png" for i in range(count)], [])
    return images, Labels(("Bright", "Red"), values)


def ignore(seen: int, report: dict[str, float]) -> None:
    assert seen > 0
    assert np.isfinite(report["loss"])


def test_default_net_is_small() -> None:
    net = AttributeNet(AttributeSettings().config())
    assert 300_000 < sum(p.numel() for p in net.parameters()) < 500_000


def test_score_does_not_depend_on_the_batch() -> None:
    net = AttributeNet(AttributeConfig(("a", "b"), 16, (8, 16, 16))).eval()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    together = attribute_logits(net, images)
    torch.testing.assert_close(together, attribute_logits(net, images, batch=1), rtol=1e-4, atol=1e-6)


def test_images_of_other_sizes_are_brought_to_the_nets() -> None:
    net = AttributeNet(AttributeConfig(("a",), 16, (8, 8))).eval()
    small = torch.rand(2, 3, 16, 16) * 2 - 1
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(net(large), net(small), rtol=1e-4, atol=1e-6)
    assert net(small[..., ::2, ::2]).shape == (2, 1)


def test_net_survives_its_file(tmp_path: Path, tiny_model: Model) -> None:
    net = AttributeNet(AttributeConfig(("a", "b"), 16, (8, 8))).eval()
    save_attributes(tiny_model.path / "attributes.safetensors", net, {"held_out": {"a": 0.9}})
    tensors, record = read_tensors(tiny_model.path / "attributes.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert record["held_out"] == {"a": 0.9}
    loaded = load_attributes(tiny_model)
    assert loaded.config == net.config
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(loaded(images), net(images), rtol=0.01, atol=0.01)
    assert loaded.index("b") == 1
    with pytest.raises(UsageError, match="knows a, b"):
        loaded.index("c")
    with pytest.raises(FileError, match="no such file"):
        load_attributes(tmp_path / "none.safetensors")


def test_model_without_net(tiny_model: Model) -> None:
    with pytest.raises(FileError, match="no attribute net"):
        load_attributes(tiny_model)


def test_broken_net_files(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_attributes(path, AttributeNet(AttributeConfig(("a",), 16, (8, 8))))
    tensors, record = read_tensors(path)
    write_tensors(path, tensors, {**record, "kind": "code"})
    with pytest.raises(FileError, match="not an attribute net"):
        load_attributes(path)
    write_tensors(path, tensors, {**record, "widths": [7]})
    with pytest.raises(FileError, match="bad settings"):
        load_attributes(path)
    write_tensors(path, {k: v for k, v in tensors.items() if k != "head.bias"}, record)
    with pytest.raises(FileError, match=r"head\.bias"):
        load_attributes(path)


def csv_file(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["file,age,Smiling,Young", *rows]) + "\n")
    return path


def test_labels_from_csv(tmp_path: Path) -> None:
    settings = AttributeSettings(attributes="Young,Smiling", use_ages=True, young_until=30, old_from=45)
    rows = ["c/1.webp,,1,0", "c/2.webp,,-1,1", "a/3.webp,12,,", "a/4.webp,70,,", "a/5.webp,40,,"]
    path = csv_file(tmp_path / "labels.csv", *rows)
    # A folder gives names without their path; the last image has no row.
    names = ["c/1.webp", "2.webp", "a/3.webp", "a/4.webp", "a/5.webp", "x.webp"]
    found = read_labels(path, names, settings)
    nan = np.nan
    expected = [[0, 1], [1, 0], [1, nan], [0, nan], [nan, nan], [nan, nan]]
    np.testing.assert_array_equal(found.values, np.array(expected, dtype=np.float32))
    assert found.names == ("Young", "Smiling")
    without = read_labels(path, names, AttributeSettings(attributes="Young,Smiling"))
    np.testing.assert_array_equal(
        without.values[:, 0], np.array([0, 1, nan, nan, nan, nan], dtype=np.float32)
    )


def test_bad_labels(tmp_path: Path) -> None:
    settings = AttributeSettings(attributes="Smiling")
    path = csv_file(tmp_path / "labels.csv", "1.webp,,yes,1")
    with pytest.raises(FileError, match=r"1\.webp: Smiling is 'yes'"):
        read_labels(path, ["1.webp"], settings)
    with pytest.raises(FileError, match="no label for any"):
        read_labels(path, ["2.webp"], settings)
    with pytest.raises(FileError, match="no column 'Bald'"):
        read_labels(path, ["1.webp"], AttributeSettings(attributes="Bald"))
    with pytest.raises(FileError, match="without rows"):
        read_labels(csv_file(tmp_path / "empty.csv"), ["1.webp"], settings)
    with pytest.raises(FileError, match="not readable"):
        read_labels(tmp_path / "none.csv", ["1.webp"], settings)


def test_masked_loss_against_the_formula() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    target = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    weights = torch.tensor([[0.5, 2.0], [1.5, 3.0]])
    p = torch.sigmoid(logits)
    expected = -(1.5 * p[0, 0].log() + 0.5 * (1 - p[1, 0]).log() + 3.0 * p[1, 1].log()) / 3
    torch.testing.assert_close(masked_loss(logits, target, weights), expected)


def test_augmentation() -> None:
    images = F.interpolate(torch.rand(64, 3, 4, 4) * 2 - 1, size=(16, 16), mode="bilinear")

    def draw(strength: float, flip: bool) -> torch.Tensor:
        return augment_photos(images, strength, flip, torch.Generator().manual_seed(1))

    assert torch.equal(draw(0, False), images)
    flipped = draw(0, True)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert ((flipped == images).flatten(1).all(dim=1) ^ mirrored).all()
    assert 16 < mirrored.sum() < 48
    strong = draw(1, True)
    assert strong.shape == images.shape
    assert strong.abs().max() <= 1
    assert 0.01 < (strong - images).abs().mean() < 0.6
    assert torch.equal(strong, draw(1, True))


def test_training_learns_and_is_stored(tmp_path: Path) -> None:
    images, labels = bright_images()
    held_out = bright_images(seed=1)
    net = train_attributes(QUICK, images, labels, tmp_path, ignore, held_out)
    result = evaluate_attributes(net, *held_out)
    assert result["Bright"]["balanced_accuracy"] > 0.9
    assert result["Red"]["auc"] > 0.9
    assert result["Red"]["yes"] + result["Red"]["no"] == 200
    stored = load_attributes(tmp_path / "attributes.safetensors")
    x = images.batch([0, 1])
    assert torch.equal(stored(x), net(x))
    _, record = read_tensors(tmp_path / "attributes.safetensors")
    assert record["images_seen"] == 1920
    assert set(record["held_out"]) == {"Bright", "Red"}


def test_interrupted_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    images, labels = bright_images()
    settings = dataclasses.replace(QUICK, images=320, augment=1.0)
    whole = train_attributes(settings, images, labels, tmp_path / "whole", ignore)

    def interrupt(seen: int, _: dict[str, float]) -> None:
        if seen == 160:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_attributes(settings, images, labels, tmp_path / "parts", interrupt)
    assert not (tmp_path / "parts" / "attributes.safetensors").exists()
    assert len(list_snapshots(tmp_path / "parts")) == 1
    resumed = train_attributes(settings, images, labels, tmp_path / "parts", ignore)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    other = dataclasses.replace(settings, widths="8,16")
    with pytest.raises(UsageError, match="has another net"):
        train_attributes(other, images, labels, tmp_path / "parts", ignore)


def test_one_kind_of_label_is_refused(tmp_path: Path) -> None:
    images, labels = bright_images(40)
    labels.values[:, 1] = 1.0
    with pytest.raises(WranganError, match="Red: the images have only one kind"):
        train_attributes(QUICK, images, labels, tmp_path, ignore)


@pytest.mark.parametrize(
    "bad",
    [
        {"attributes": ""},
        {"attributes": "a,a"},
        {"widths": "7"},
        {"widths": "x"},
        {"resolution": 4},
        {"lr": 0.0},
    ],
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        AttributeSettings(**bad)  # type: ignore[arg-type]


def test_rates_against_counting_pairs() -> None:
    class Fixed(torch.nn.Module):
        """Reads its logits from the first pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1, 0, 0]

        def index(self, name: str) -> int:
            return ["a"].index(name)

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 12, (60, 1, 1, 3), dtype=np.uint8) * 20
    truth = (rng.random(60) < 0.3).astype(np.float32)
    truth[:5] = np.nan
    images = ImageSet(pixels, [str(i) for i in range(60)], [])
    found = evaluate_attributes(Fixed(), images, Labels(("a",), truth[:, None]))["a"]  # type: ignore[arg-type]
    score = pixels[:, 0, 0, 0] / 127.5 - 1
    yes, no = score[truth == 1], score[truth == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in yes for b in no]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert found["accuracy"] == pytest.approx((np.sum(yes > 0) + np.sum(no <= 0)) / 55)
    assert found["balanced_accuracy"] == pytest.approx((np.mean(yes > 0) + np.mean(no <= 0)) / 2)
