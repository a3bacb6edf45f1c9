"""Photographs by the generator: batches of one side, failures in their places, progress, memory."""

from pathlib import Path

import pytest
import torch

from tests.conftest import write_photo
from tests.fakes import codes_of, make_inverter
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.inversion.loop import Inverter
from wrangan_cli.engine.inversion.many import Progress, invert_many
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model


def images_of(*sides: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    return [torch.rand(3, side, side, generator=rng) * 2 - 1 for side in sides]


def test_batches_hold_neighbours_of_one_side(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    inverter, photos = make_inverter(tiny_model, steps=2), images_of(16, 16, 16, 8, 16)
    shapes, whole = [], Inverter.invert

    def seen(self: Inverter, images: torch.Tensor, on_step=None):  # type: ignore[no-untyped-def]
        shapes.append((len(images), images.shape[-1]))
        return whole(self, images, on_step)

    monkeypatch.setattr(Inverter, "invert", seen)
    found = list(invert_many(inverter, photos, batch=2))
    assert shapes == [(2, 16), (1, 16), (1, 8), (1, 16)]
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert [one.cost["batch"] for one in found] == [2, 2, 1, 1, 1]
    assert all(one.seconds > 0 for one in found)


def test_the_codes_are_those_of_the_inverter(tiny_model: Model) -> None:
    inverter, photos = make_inverter(tiny_model, steps=3), images_of(16, 16)
    direct = codes_of(inverter.invert(torch.stack(photos)))
    for one, code in zip(invert_many(inverter, photos), direct, strict=True):
        assert isinstance(one.code, Code)
        assert torch.equal(one.code.w, code.w)
        assert one.code.info["distortion"] == code.info["distortion"]


def test_files_and_images_together_and_one_that_cannot_be_read(tiny_model: Model, tmp_path: Path) -> None:
    inverter = make_inverter(tiny_model, steps=1)
    good, bad = write_photo(tmp_path / "good.png", side=16), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = {one.index: one for one in invert_many(inverter, [good, bad, *images_of(16)])}
    assert isinstance(found[1].code, FileError)
    assert found[1].code.path == bad
    assert isinstance(found[0].code, Code)
    assert isinstance(found[2].code, Code)
    assert torch.equal(found[0].code.w, codes_of(inverter.invert(inverter.load_photo(good)[None]))[0].w)


def test_progress_counts_steps_of_photographs(tiny_model: Model) -> None:
    told: list[Progress] = []
    list(invert_many(make_inverter(tiny_model, steps=2), images_of(16, 16, 16), 2, told.append))
    assert [at.done for at in told] == [0, 2, 4, 4, 5, 6, 6]
    assert {at.total for at in told} == {6}
    assert told[0].per_minute is None
    assert told[1].per_minute is not None
    assert told[1].per_minute > 0


def test_results_come_before_the_next_batch(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], Inverter.invert

    def counted(self: Inverter, images: torch.Tensor, on_step=None):  # type: ignore[no-untyped-def]
        calls.append(len(images))
        return whole(self, images, on_step)

    monkeypatch.setattr(Inverter, "invert", counted)
    many = invert_many(make_inverter(tiny_model, steps=1), images_of(16, 16), batch=1)
    next(many)
    assert calls == [1]


def test_half_the_batch_where_memory_runs_out(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes, whole = [], Inverter.invert

    def small(self: Inverter, images: torch.Tensor, on_step=None):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, images, on_step)

    monkeypatch.setattr(Inverter, "invert", small)
    found = list(invert_many(make_inverter(tiny_model, steps=1), images_of(16, 16, 16, 16, 16), batch=5))
    assert sizes == [5, 2, 2, 1]
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert caplog.messages == ["out of memory with 5 photographs at a time: retrying with 2"]
