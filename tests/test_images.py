"""Photographs in and out: every kind of file, good and bad."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data import image_reading
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import image_grid, labelled_grid, to_tensor, to_uint8
from wrangan_cli.engine.data.pillow_limits import pillow_without_remarks


def pixels(height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_image(array: np.ndarray) -> torch.Tensor:
    """[-1, 1] by the definition x / 127.5 - 1, in double precision."""
    return torch.from_numpy(array.astype(np.float64) / 127.5 - 1).permute(2, 0, 1).float()


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    array = pixels(20, 30)
    Image.fromarray(array).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, as_image(array), atol=1e-6, rtol=0)


def test_resolution_crops_the_centre_and_averages_areas(tmp_path: Path) -> None:
    array = pixels(32, 48)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = as_image(array[:, 8:40]).reshape(3, 16, 2, 16, 2).mean(dim=(2, 4))
    got = load_image(tmp_path / "a.png", 16)
    assert got.shape == (3, 16, 16)
    # Pillow rounds to 8 bits after each of its two passes.
    assert (got - expected).abs().max() < 1.1 / 127.5


def test_resolution_enlarges_by_bicubic(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", side=20)
    expected = Image.open(tmp_path / "a.png").resize((64, 64), Image.Resampling.BICUBIC)
    torch.testing.assert_close(load_image(tmp_path / "a.png", 64), as_image(np.array(expected)))


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    torch.testing.assert_close(load_image(tmp_path / "a.png"), as_image(np.stack([grey] * 3, axis=2)))


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    array = np.dstack([pixels(), np.full((32, 32), 64, dtype=np.uint8)])
    array[:8, :, 3] = 0
    Image.fromarray(array).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png")
    alpha = array[..., 3:] / 255
    expected = as_image(array[..., :3] * alpha + 255 * (1 - alpha))
    assert (got - expected).abs().max() < 1.1 / 127.5
    assert (got[:, :8] == 1).all()


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels()).quantize(16)
    picture.save(tmp_path / "a.png")
    torch.testing.assert_close(load_image(tmp_path / "a.png"), as_image(np.array(picture.convert("RGB"))))
    picture.save(tmp_path / "b.png", transparency=int(np.array(picture)[0, 0]))
    assert (load_image(tmp_path / "b.png")[:, 0, 0] == 1).all()


def test_16_bit_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32).round().astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.tile(ramp, (32, 1))).save(tmp_path / name)
        got = load_image(tmp_path / name)
        expected = torch.linspace(-1, 1, 32).expand(3, 32, 32)
        assert (got - expected).abs().max() <= 0.51 / 127.5


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    picture.save(tmp_path / "a.jpg", quality=100)
    got = load_image(tmp_path / "a.jpg").mean(dim=(1, 2))
    torch.testing.assert_close(got, torch.tensor([1.0, -1.0, -1.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = pixels(20, 32)
    # How a camera stores the upright picture for each value (EXIF 2.3, table of tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        # Shown after a quarter turn clockwise (6) or counter-clockwise (8).
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(load_image(tmp_path / "a.png"), as_image(upright))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").mean(dim=(1, 2)).tolist() == [1, -1, -1]


def test_20000_px_wide(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20_000, 2600), "red").save(tmp_path / "b.jpg")
    assert load_image(tmp_path / "a.png", 16).shape == (3, 16, 16)
    torch.testing.assert_close(
        load_image(tmp_path / "b.jpg", 16)[:, 3, 3], torch.tensor([1.0, -1.0, -1.0]), atol=0.03, rtol=0
    )


def test_large_jpeg_is_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_photo(tmp_path / "a.jpg", side=512)
    exact = load_image(path, 32)
    monkeypatch.setattr(image_reading, "DRAFT_PIXELS", 1000)
    assert (load_image(path, 32) - exact).abs().max() < 0.05


def test_pillow_limit_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    load_image(write_photo(tmp_path / "a.png"))
    assert Image.MAX_IMAGE_PIXELS == 500


def bad_files(folder: Path) -> dict[Path, str]:
    """Files that cannot be used, with a word of the cause."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(buffer, "PNG")
    png = buffer.getvalue()
    contents = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "broken image"),
        "truncated.png": (png[: len(png) // 2], "broken image"),
        "garbled.png": (png[:60] + b"\0" * 40 + png[100:], "broken image"),
        "empty.jpg": (b"", "0 bytes"),
        "text.jpg": (b"this is a text\n" * 20, "not an image"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    (folder / "folder.png").mkdir()
    expected = {folder / name: word for name, (_, word) in contents.items()}
    expected |= {folder / "tiny.png": "too small: 1 × 1 px", folder / "folder.png": "a folder"}
    return expected | {folder / "missing.png": "no such file"}


def test_bad_files_give_one_line_with_name_and_cause(tmp_path: Path) -> None:
    for path, word in bad_files(tmp_path).items():
        for resolution in (None, 16):
            with pytest.raises(FileError) as caught:
                load_image(path, resolution)
            line = str(caught.value)
            assert line.startswith(f"{path}: ")
            assert word in line
            assert "\n" not in line


def test_a_broken_tiff_is_not_commented_on_by_its_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(pixels(64, 64)).save(path, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    data[200:6000] = bytes(5800)
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"a\.tif: broken image"):
        load_image(path)
    # libtiff writes to the terminal by itself, past Python.
    assert capfd.readouterr().err == ""


def test_remarks_stay_off_while_any_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    with pillow_without_remarks():
        with pillow_without_remarks():
            pass
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 12345


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reading, "MAX_PIXELS", 1000)
    with pytest.raises(FileError, match="too large: 40 × 40 px"):
        load_image(write_photo(tmp_path / "a.png"))


def test_floating_point_tiff(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert (load_image(tmp_path / "a.tif")[0, 0] - torch.linspace(-1, 1, 32)).abs().max() < 0.005
    Image.fromarray(ramp * 300).save(tmp_path / "b.tif")
    with pytest.raises(FileError, match=r"outside \[0, 1\]"):
        load_image(tmp_path / "b.tif")


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0.0), ("a.jpg", 12.0), ("a.webp", 12.0)])
def test_save_and_load(tmp_path: Path, name: str, tolerance: float) -> None:
    image = load_image(write_photo(tmp_path / "in.png", side=64))
    save_image(tmp_path / "new" / name, image)
    saved = load_image(tmp_path / "new" / name)
    assert (to_uint8(saved).int() - to_uint8(image).int()).abs().max() <= tolerance
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]
    assert Image.open(tmp_path / "new" / name).format == {".jpg": "JPEG"}.get(
        Path(name).suffix, Path(name).suffix[1:].upper()
    )


def test_save_refuses(tmp_path: Path) -> None:
    image = torch.zeros(3, 16, 16)
    for name in ("a.bmp", "a"):
        with pytest.raises(UsageError, match=r"written as \.png"):
            save_image(tmp_path / name, image)
    with pytest.raises(WranganError, match="not finite"):
        save_image(tmp_path / "a.png", image / 0)
    assert not list(tmp_path.iterdir())


def test_failed_write_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_photo(tmp_path / "a.png")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(FileError, match=r"a\.png: not written \(No space left on device\)"):
        save_image(path, torch.zeros(3, 16, 16))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"a\.png: not written"):
        save_image(tmp_path / "file" / "a.png", torch.zeros(3, 16, 16))


def test_to_uint8_rounds_and_clips() -> None:
    values = torch.tensor([-2.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)


def test_image_grid() -> None:
    batch = torch.arange(5).float()[:, None, None, None].expand(5, 3, 4, 4) / 10
    grid = image_grid(batch, columns=3, gap=2)
    assert grid.shape == (3, 10, 16)
    assert torch.equal(grid[:, :4, :4], batch[0])
    assert torch.equal(grid[:, 6:, 6:10], batch[4])
    assert (grid[:, 4:6] == 1).all()
    assert (grid[:, 6:, 12:] == 1).all()
    assert image_grid(batch).shape == (3, 8, 12)
    assert image_grid(batch[:1], columns=4).shape == (3, 4, 4)


def test_labelled_grid_shows_images_and_titles() -> None:
    rows = [[-torch.ones(3, 20, 20), torch.zeros(3, 20, 20)], torch.zeros(1, 3, 20, 20)]
    figure = labelled_grid(rows, row_titles=["first", "second"], column_titles=["a", "b"])
    assert figure.shape[1] > 42
    assert figure.shape[2] > 42
    # A black square at the place of the first image, ink in the margin, white where a row is short.
    assert (figure == -1).all(dim=0).sum() >= 400
    assert (figure[:, 18:, :30].mean(dim=0) < 0).any()
    assert (figure[:, -20:, -20:] == 1).all()


def test_to_tensor_takes_any_mode() -> None:
    assert to_tensor(Image.new("L", (5, 4), 255)).tolist() == torch.ones(3, 4, 5).tolist()


def test_a_decoder_that_raises_runtime_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's AVIF decoder does on some broken files."""
    write_photo(tmp_path / "a.png")

    def broken(*_: object) -> None:
        raise RuntimeError("Failed to decode image: Not implemented")

    monkeypatch.setattr(Image.Image, "load", broken)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(FileError, match=r"broken image .Failed to decode"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("largest", "white"), [(1023, 1023), (4095, 4095), (4000, 4095), (4096, 65535), (200, 65535)]
)
def test_grey_of_ten_and_twelve_bits(
    largest: int, white: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ramp = np.linspace(0, largest, 32).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (32, 1))).save(tmp_path / "a.tif")
    got = (load_image(tmp_path / "a.tif")[0, 0] + 1) / 2
    assert (got - torch.from_numpy(ramp.astype(np.float32)) / white).abs().max() < 0.003
    assert bool(caplog.messages) == (white < 65535)


@pytest.mark.parametrize("largest", [4095, 65535])
def test_colour_of_twelve_bits_in_sixteen_is_refused(largest: int, tmp_path: Path) -> None:
    values = np.linspace(0, largest, 32 * 32 * 3).astype("<u2").reshape(32, 32, 3)
    entries = [(256, 3, 1, 32), (257, 3, 1, 32), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 200), (277, 3, 1, 3), (278, 3, 1, 32), (279, 4, 1, values.nbytes)]
    head = b"II*\0" + struct.pack("<I", 16) + struct.pack("<HHH", 16, 16, 16).ljust(8, b"\0")
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    (tmp_path / "a.tif").write_bytes((head + table).ljust(200, b"\0") + values.tobytes())
    if largest == 4095:
        with pytest.raises(FileError, match="12 bits"):
            load_image(tmp_path / "a.tif")
    else:
        assert load_image(tmp_path / "a.tif").max() == 1
