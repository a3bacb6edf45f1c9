"""Parts of a report: its settings, its cache, the features that it keeps, its difference maps."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.reports import samples as report_samples
from wrangan_cli.engine.reports.cache import Cache
from wrangan_cli.engine.reports.figures import difference_scale, sized
from wrangan_cli.engine.reports.plots import coloured
from wrangan_cli.engine.reports.settings import chosen_methods, parse_settings
from wrangan_cli.engine.reports.subject import untracked


def test_features_that_an_ended_run_has_taken_are_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_samples, "PART", 4)
    drawn: list[int] = []

    def images(numbers: Sequence[int]) -> Iterator[Tensor]:
        for number in numbers:
            drawn.append(number)
            if broken and number == 9:
                raise KeyboardInterrupt
            yield torch.full((1, 3), float(number))

    def features() -> Tensor:
        about = SimpleNamespace(
            settings=SimpleNamespace(samples=11),
            model=SimpleNamespace(sha256="x"),
            cache=Cache(tmp_path),
            track=untracked,
            inception=lambda: lambda batch: batch,
            reference=lambda: None,
        )
        return report_samples.Samples(about).features("moved", {"seed": 0}, images)  # type: ignore[arg-type]

    broken = True
    with pytest.raises(KeyboardInterrupt):
        features()
    assert drawn == list(range(10))
    broken = False
    drawn.clear()
    assert features()[:, 0].tolist() == list(range(11))
    assert drawn == [8, 9, 10]
    assert features().shape == (11, 3)
    assert drawn == [8, 9, 10]


def test_what_took_long_is_on_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrangan_cli.engine.reports.cache.WRITE_INTERVAL", -1.0)
    Cache(tmp_path).put("x", {"a": 1}, 2.5)  # and then the process is killed
    assert Cache(tmp_path).get("x", {"a": 1}) == 2.5


def test_settings_of_all_and_of_one() -> None:
    methods = chosen_methods("sg2-w, wrangan")
    assert methods == ("wrangan", "sg2-w")
    settings, own = parse_settings(
        ["steps=7", "wrangan.steps=9", "wrangan.epsilon_lr=none", "strength=2", "seed=4"], methods, samples=5
    )
    assert (settings["wrangan"].steps, settings["sg2-w"].steps) == (9, 7)
    assert settings["wrangan"].epsilon_lr is None
    assert (own.strength, own.samples, own.seed) == (2.0, 5, 4)
    with pytest.raises(UsageError, match="'pti' is not among"):
        parse_settings(["pti.lr=1"], methods)


def test_cache_is_by_key_and_survives_broken_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get_or_make("x", {"a": 1}, lambda: [1.5]) == [1.5]
    assert cache.get_or_make("x", {"a": 1}, lambda: [2.5]) == [1.5]
    assert cache.get_or_make("x", {"a": 2}, lambda: [3.5]) == [3.5]
    cache.flush()
    assert Cache(tmp_path).get("x", {"a": 2}) == [3.5]
    (tmp_path / "x.json").write_text("{")
    assert Cache(tmp_path).get("x", {"a": 2}) is None
    features = torch.randn(3, 4)
    first = cache.features("f", {"b": 1}, lambda: features)
    assert torch.equal(first, cache.features("f", {"b": 1}, lambda: features * 0))
    assert cache.computed == ["x", "x", "f"]


def test_difference_maps_go_from_purple_to_yellow() -> None:
    pytest.importorskip("matplotlib")
    errors = torch.linspace(0, 1, 10_001).view(1, -1)
    assert difference_scale(errors) == pytest.approx(0.99, abs=1e-4)
    red, green, blue = ((coloured(errors, 0.99)[:, 0] + 1) / 2)[:, [0, -1]].tolist()
    assert red[0] < 0.3 < blue[0]
    assert green[0] < 0.05
    assert min(red[1], green[1]) > 0.9 > 0.2 > blue[1]


def test_report_settings_are_checked() -> None:
    _, own = parse_settings([], ("sg2-w",))
    for bad in ({"shown": 0}, {"samples": -1}, {"separability_samples": 3}, {"strength": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            dataclasses.replace(own, **bad)


def test_figures_show_images_at_a_side_that_can_be_read() -> None:
    small, fitting, large = (torch.rand(1, 3, side, side) for side in (64, 256, 640))
    assert torch.equal(sized(small)[..., ::2, ::2], small)
    assert sized(small).shape[-1] == 128
    assert sized(fitting) is fitting
    torch.testing.assert_close(sized(large), large.reshape(1, 3, 320, 2, 320, 2).mean(dim=(3, 5)))
