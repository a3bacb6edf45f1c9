"""Whatever happens to a run, it goes on from its last snapshot as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import write_photo
from tests.fakes import fake_perceptual
from tests.test_adversarial import BRISK, flat, run_to, trainer_for
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data.image_sets import batches
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.training.encoder import EncoderTrainer
from wrangan_cli.engine.training.run import prefetched, train
from wrangan_cli.engine.training.settings import EncoderSettings, GeneratorSettings
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot, newest_state, save_snapshot

ROOT = Path(__file__).parents[1]


def assert_same_state(one: dict, two: dict) -> None:
    """Equal bit for bit, settings apart."""
    first, second = flat({**one, "settings": None}), flat({**two, "settings": None})
    assert set(first) == set(second)
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same, name


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    for seed in range(8):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    options = "--resolution 16 --channels 8,8,8 --style-dim 8 --mapping-layers 2 --batch 4 --augment ada"
    base = ["train", "generator", "--data", str(tmp_path / "faces"), *options.split()]
    base += ["--augment-target", "-0.9", "--snapshot-images", "8", "--device", "cpu"]
    parts = tmp_path / "parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "wrangan_cli", *base, "--out", str(parts), "--images", "100000"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(list_snapshots(parts)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # What is there under a snapshot's name can be read.
    reached = load_snapshot(list_snapshots(parts)[-1])["images"]
    last = str(reached + 12)
    for out in (parts, tmp_path / "whole"):
        result = CliRunner().invoke(app, [*base, "--out", str(out), "--images", last])
        assert result.exit_code == 0, result.stderr
    states = [load_snapshot(list_snapshots(out)[-1]) for out in (parts, tmp_path / "whole")]
    assert states[0]["images"] == reached + 12
    assert_same_state(*states)


def test_a_broken_snapshot_is_passed_over_and_said(tmp_path: Path) -> None:
    settings = GeneratorSettings(images=40, **BRISK)
    whole, _ = run_to(settings, tmp_path / "whole")
    run_to(GeneratorSettings(images=20, **BRISK), tmp_path / "parts")
    newest = list_snapshots(tmp_path / "parts")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    trainer, warnings = trainer_for(settings, seed=99), []

    def stream(start: int) -> Iterator[torch.Tensor]:
        from tests.test_adversarial import data

        return batches(data(), settings.batch, settings.seed, start, settings.flip)

    train(trainer, stream, tmp_path / "parts", lambda *_: None, lambda _: None, warnings.append)
    (warning,) = warnings
    assert str(newest) in warning
    assert "kept as broken-snapshot-0000000020.pt, continuing from snapshot-0000000016.pt" in warning
    assert "\n" not in warning
    assert_same_state(whole.state(), trainer.state())


def test_without_a_readable_snapshot_the_run_stops(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, 4, {"images": 4}, keep=1)
    path.write_bytes(b"half")
    with pytest.raises(FileError, match="not a readable training snapshot"):
        newest_state(tmp_path, pytest.fail)
    assert newest_state(tmp_path / "nothing", pytest.fail) is None


def test_the_command_says_what_it_passes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    write_photo(tmp_path / "faces" / "0.png")
    options = "--resolution 16 --channels 8,8,8 --style-dim 8 --batch 4 --snapshot-images 4 --device cpu"
    base = ["train", "generator", "--data", str(tmp_path / "faces"), "--out", str(tmp_path / "g")]
    base += options.split()
    assert CliRunner().invoke(app, [*base, "--images", "8"]).exit_code == 0
    list_snapshots(tmp_path / "g")[-1].write_bytes(b"")
    result = CliRunner().invoke(app, [*base, "--images", "8"])
    assert result.exit_code == 0, result.stderr
    assert "continuing from snapshot-0000000004.pt" in result.stderr


def test_an_encoder_resumes_exactly(tiny_model: Model, tmp_path: Path) -> None:
    from tests.test_adversarial import data

    def run(images: int, folder: str, seed: int) -> EncoderTrainer:
        settings = EncoderSettings(images=20, batch=4, widths="8,8", blocks="1,1", input_side=16)
        trainer = EncoderTrainer(tiny_model, settings, fake_perceptual())
        torch.manual_seed(seed)
        if images < 20:

            def stop(running: EncoderTrainer, _: object) -> None:
                if running.images == images:
                    raise KeyboardInterrupt
        else:

            def stop(running: EncoderTrainer, _: object) -> None: ...

        def stream(start: int) -> Iterator[torch.Tensor]:
            return batches(data(), settings.batch, settings.seed, start, settings.flip)

        train(trainer, stream, tmp_path / folder, stop, lambda _: None, pytest.fail)
        return trainer

    whole = run(20, "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        run(12, "parts", seed=1)
    assert_same_state(whole.state(), run(20, "parts", seed=2).state())


def test_batches_come_in_order_and_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number
        raise ValueError("disk gone")

    stream = prefetched(source())
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1]
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="disk gone"):
        next(stream)
