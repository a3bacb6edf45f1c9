"""Embedded colour profiles: pictures come out in sRGB; broken profiles are remarked once."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from tests.icc_profiles import ADOBE, DISPLAY_P3, SRGB, encode, grey_profile, in_srgb, rgb_profile
from wrangan_cli.app import app
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.data.image_sets import load_image_set

SRGB_BYTES = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("primaries", [ADOBE, DISPLAY_P3])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_wide_gamut_becomes_srgb(
    tmp_path: Path, primaries: tuple[tuple[float, float], ...], suffix: str
) -> None:
    # Black-point compensation and clipping of colours outside sRGB are left out of the definition:
    # colours of a small range are in every gamut.
    array = (pixels() // 3 + 80).astype(np.uint8)
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    Image.fromarray(array).save(path, icc_profile=rgb_profile(primaries), **options)
    got = np.asarray(open_image(path)).astype(float)
    expected = in_srgb(array, primaries)
    assert np.abs(expected - array).max() > 10
    assert np.abs(got - expected).max() <= 1.5
    assert "icc_profile" not in Image.fromarray(got.astype(np.uint8)).info


def test_a_known_colour_of_adobe_rgb(tmp_path: Path) -> None:
    """sRGB's full red is (219, 0, 0) in Adobe RGB (1998), whose red and blue primaries it shares."""
    Image.new("RGB", (16, 16), (219, 0, 0)).save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE))
    red = np.asarray(open_image(tmp_path / "a.png"))[0, 0].astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 2


def test_srgb_is_left_as_it_is(tmp_path: Path) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=SRGB_BYTES)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), array)


def test_alpha_stays_and_lies_over_white(tmp_path: Path) -> None:
    array = np.dstack([(pixels() // 3 + 80).astype(np.uint8), np.full((24, 24), 255, dtype=np.uint8)])
    array[:8, :, 3] = 0
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE))
    got = np.asarray(open_image(tmp_path / "a.png")).astype(float)
    assert (got[:8] == 255).all()
    assert np.abs(got[8:] - in_srgb(array[8:, :, :3], ADOBE)).max() <= 1.5


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_with_a_grey_profile(tmp_path: Path, alpha: bool) -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))
    picture = Image.fromarray(ramp)
    if alpha:
        picture = Image.merge("LA", [picture, Image.new("L", picture.size, 255)])
    picture.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    got = np.asarray(open_image(tmp_path / "a.png")).astype(float)
    assert np.abs(got - encode(ramp / 255)[..., None]).max() <= 2


def test_grey_with_an_rgb_profile(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=100, icc_profile=rgb_profile(ADOBE))
    got = np.asarray(open_image(tmp_path / "a.jpg")).astype(float)
    assert np.abs(got - in_srgb(np.stack([ramp] * 3, axis=2), ADOBE))[:, 4:].max() <= 4


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        rgb_profile(ADOBE)[:200],
        rgb_profile(ADOBE)[:128] + struct.pack(">I", 2**31) + bytes(60),
        grey_profile(2.2),  # of another kind of picture
    ],
)
def test_a_profile_that_cannot_be_used_is_one_line(
    tmp_path: Path, profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=profile)
    with caplog.at_level(logging.WARNING, "wrangan"):
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), array)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'a.png'}: ")
    assert "colour profile" in line
    assert line.endswith("taken as sRGB")
    assert "\n" not in line


def test_cmyk_with_a_profile_of_another_space_is_read_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    picture.save(tmp_path / "plain.jpg", quality=100)
    picture.save(tmp_path / "a.jpg", quality=100, icc_profile=rgb_profile(SRGB))
    got, plain = (np.asarray(open_image(tmp_path / name)) for name in ("a.jpg", "plain.jpg"))
    np.testing.assert_array_equal(got, plain)
    assert "is for RGB, not CMYK" in caplog.text


def test_the_command_says_it_and_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "photos" / "a.png", icc_profile=b"x" * 40)
    options = ["--init", "mean", "--steps", "1", "--perceptual-weight", "0", "--device", "cpu"]
    arguments = ["invert", tmp_path / "photos", "--model", tiny_folder, "--out", tmp_path / "codes", *options]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"wrangan: {tmp_path / 'photos' / 'a.png'}: broken colour profile")


def test_training_images_are_converted_too(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    array = (pixels() // 3 + 80).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "p" / "a.png", icc_profile=rgb_profile(DISPLAY_P3))
    images = load_image_set([tmp_path / "p"], 24, tmp_path / "cache")
    assert np.abs(images.pixels[0] - in_srgb(array, DISPLAY_P3)).max() <= 1.5
