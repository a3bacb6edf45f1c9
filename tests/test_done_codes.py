"""Which codes count as done when the same photographs are inverted again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, write_photo
from tests.fakes import make_inverter
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.inversion.folder import Job, described, stored_code
from wrangan_cli.engine.inversion.method_settings import SETTINGS, all_settings, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics.consistency import stored_settings
from wrangan_cli.engine.models.codes import Code, load_code, save_code
from wrangan_cli.engine.models.encoders import Encoder, EncoderConfig, save_encoder
from wrangan_cli.engine.models.folder import Model


def stored(model: Model, folder: Path, **settings: Any) -> tuple[Job, InversionSettings]:
    """A photograph and its code, made with these settings."""
    job = Job(write_photo(folder / "a.png"), folder / "a.st")
    inverter = make_inverter(model, **{"steps": 1, **settings})
    (code,) = inverter.invert(load_image(job.photo, model.resolution)[None])
    assert isinstance(code, Code)
    save_code(job.code, described(code, job.photo, 1.0, {}))
    return job, inverter.settings


def rewrite(job: Job, **changes: Any) -> None:
    """Change the record of a code's settings; None takes a setting out."""
    code = load_code(job.code)
    settings = {**code.info["settings"], **changes}
    kept = {name: value for name, value in settings.items() if name not in changes or value is not None}
    save_code(job.code, dataclasses.replace(code, info={**code.info, "settings": kept}))


def refusal(found: Code | WranganError | None) -> str:
    assert isinstance(found, FileError)
    return str(found)


@pytest.mark.parametrize("method", ["wrangan", "sg2-w"])
def test_a_setting_that_is_newer_than_the_code_had_its_default(
    method: str, tiny_model: Model, tmp_path: Path
) -> None:
    job, settings = stored(tiny_model, tmp_path, method=method)
    rewrite(job, beta2=None, w_noise=None, pti_locality=None, epsilon_warmup=None, size=None)
    assert "w_noise" not in load_code(job.code).info["settings"]
    assert isinstance(stored_code(job, tiny_model, settings), Code)
    name, value = ("beta2", 0.95) if method == "wrangan" else ("w_noise", 0.2)
    other = dataclasses.replace(settings, **{name: value})
    default = getattr(inversion_settings(method), name)
    assert f"made with {name} {default}, not {value}; use --overwrite" in refusal(
        stored_code(job, tiny_model, other)
    )


def test_what_the_method_does_not_use_makes_no_difference(tiny_model: Model, tmp_path: Path) -> None:
    job, settings = stored(tiny_model, tmp_path)
    rewrite(job, projection_lr=0.05, pti_steps=7, noise_weight=0.0)
    assert isinstance(stored_code(job, tiny_model, settings), Code)
    for name, value in (("alpha", 0.5), ("seed", 3), ("steps", 9), ("method", "weight-tuning")):
        rewrite(job, **{name: value})
        assert f"made with {name} {value!r}, not" in refusal(stored_code(job, tiny_model, settings))
        rewrite(job, **{name: getattr(settings, name)})


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning", "sg2-w", "sg2-w-plus", "pti", "encoder"])
def test_a_record_with_the_settings_of_all_methods_counts(
    method: str, tiny_model: Model, tmp_path: Path
) -> None:
    """As earlier versions wrote it; what is recorded now are the method's own, by the same names."""
    job, settings = stored(tiny_model, tmp_path, method=method, pti_steps=1, pti_pivot_steps=1)
    recorded = load_code(job.code).info["settings"]
    assert recorded == json.loads(json.dumps(dataclasses.asdict(settings)))
    others = {name: None for name in all_settings() if name not in recorded}
    defaults = {field.name: field.default for kind in SETTINGS.values() for field in dataclasses.fields(kind)}
    rewrite(job, **{name: defaults[name] for name in others if defaults[name] is not None})
    assert set(load_code(job.code).info["settings"]) > set(recorded)
    assert isinstance(stored_code(job, tiny_model, settings), Code)
    assert stored_settings(load_code(job.code)) == dataclasses.replace(settings, size=16)
    rewrite(job, seed=5)
    assert "made with seed 5, not 0" in refusal(stored_code(job, tiny_model, settings))


def test_a_code_of_another_encoder_is_not_taken_for_done(tiny_model: Model, tmp_path: Path) -> None:
    def install(seed: int) -> None:
        torch.manual_seed(seed)
        encoder = Encoder(EncoderConfig(TINY.style_dim, (8, 8), (1, 1), 16))
        save_encoder(tiny_model.path, encoder, tiny_model, {})

    install(0)
    job, settings = stored(tiny_model, tmp_path, init="encoder")
    assert set(load_code(job.code).info["networks"]) == {"encoder.safetensors"}
    assert isinstance(stored_code(job, tiny_model, settings), Code)
    install(1)
    message = refusal(stored_code(job, tiny_model, settings))
    assert "made with another encoder.safetensors than tiny has now; use --overwrite" in message
    # Codes of before this was recorded pass.
    code = load_code(job.code)
    del code.info["networks"]
    save_code(job.code, code)
    assert isinstance(stored_code(job, tiny_model, settings), Code)
    # And where w starts at the mean, the encoder does not matter.
    (tmp_path / "mean").mkdir()
    job, settings = stored(tiny_model, tmp_path / "mean", init="mean")
    install(2)
    assert isinstance(stored_code(job, tiny_model, settings), Code)
