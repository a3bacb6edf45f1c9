"""What comes from files, and what the page makes besides pictures: films, strips, methods side by side."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.clips import frames_of
from tests.code_files import pixels
from tests.face_cases import smooth_photo
from tests.studio_browser.tab import Tab, picture
from wrangan_cli.engine.data.ffmpeg import probe
from wrangan_cli.engine.data.marks import MARK
from wrangan_cli.engine.editing.directions import Direction, Move, edit_code, load_directions
from wrangan_cli.engine.editing.imports import import_directions
from wrangan_cli.engine.editing.strips import Strip, Subject, strip_layout
from wrangan_cli.engine.editing.sweeps import Span, Sweep
from wrangan_cli.engine.models.codes import Code, load_code, random_code, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.studio import pictures

pytestmark = [pytest.mark.filterwarnings("ignore::Warning:gradio"), pytest.mark.xdist_group("studio")]


def on_stage(model: Model, code: Code) -> str:
    """The picture as the page has it in full."""
    return pictures.url(picture(model, code), 93)


def edited(model: Model, code: Code, *moves: tuple[Direction, float]) -> Code:
    return edit_code(code, [Move(*move) for move in moves], model.generator.config.num_latents)


@pytest.fixture
def codes(model: Model, tmp_path: Path) -> list[Code]:
    """Of a.st and b.st."""
    made = [random_code(model, seed, 0.7) for seed in (1, 2)]
    for name, code in zip("ab", made, strict=True):
        save_code(tmp_path / f"{name}.st", code)
    return made


def test_codes_are_opened(tab: Tab, model: Model, codes: list[Code], tmp_path: Path) -> None:
    """By the button, and dropped in beside a photograph; what cannot be opened is named."""
    tab.choose_files("#load", tmp_path / "a.st")
    tab.shows(on_stage(model, codes[0]))
    tab.shows_face("a")
    save_code(tmp_path / "strange.st", Code(codes[0].w, info={"model": "other", "model_sha256": "0"}))
    (tmp_path / "broken.st").write_bytes(b"no code")
    tab.tab("Photograph")
    tab.upload(*(tmp_path / f"{name}.st" for name in ("strange", "b", "broken")))
    tab.says("broken.st: ")
    tab.says("strange.st: made for another model")
    tab.shows(on_stage(model, codes[1]))
    tab.shows_face("b")
    tab.tab("Save")
    again = load_code(tab.download("#save-code", tmp_path / "made"), model)
    assert torch.equal(again.w, codes[1].w)
    tab.tab("Edit")
    tab.page.click("#subject input")
    tab.page.click("#subject [role=option]:has-text('a')")
    tab.shows(on_stage(model, codes[0]))
    tab.fits_a_phone()


def test_films_and_strips_are_those_of_the_commands(
    tab: Tab, model: Model, codes: list[Code], command: Callable[[str], None], tmp_path: Path
) -> None:
    page = tab.page
    tab.choose_files("#load", tmp_path / "a.st", tmp_path / "b.st")
    tab.shows_face("b")
    tab.tab("More")
    page.fill("#frames input[type=number]", "6")
    page.fill("#fps input[type=number]", "5")
    films = {}
    for suffix in ("mp4", "gif"):
        page.click(f"#{suffix}")
        page.wait_for_selector(f"#film a[download='a-b.{suffix}']")
        made = films[suffix] = tab.download("#film a", tmp_path / "made")
        command(page.inner_text("#film code"))
        assert (tmp_path / f"a-b.{suffix}").read_bytes() == made.read_bytes()
        assert MARK.encode() in made.read_bytes()
    frames = frames_of(films["mp4"])
    assert frames.shape == (6, 16, 16, 3)
    assert probe(films["mp4"]).fps == 5
    # The colours of a film have half of its resolution, so that no frame is an image exactly.
    ends = [np.asarray(picture(model, code), dtype=float) for code in codes]
    for frame, near, far in ((frames[0], *ends), (frames[-1], *ends[::-1])):
        assert np.abs(frame - near).mean() < 0.5 * np.abs(frame - far).mean()
    with Image.open(films["gif"]) as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (6, (16, 16), 200)

    tab.tab("Edit")
    tab.slider("age").fill("1")
    page.wait_for_selector("#stage .tag:has-text('edited')")
    tab.tab("More")
    page.click("text=Strip of strengths")
    page.fill("#strip-box input[aria-label=From]", "-2")
    page.fill("#pictures input[type=number]", "4")
    page.click("#strip")
    page.wait_for_selector("#strip-shown a[download='b-smile.png']")
    strip = tab.download("#strip-shown a", tmp_path / "made")
    command(page.inner_text("#strip-shown code"))
    assert np.array_equal(pixels(tmp_path / strip.name), pixels(strip))
    known = load_directions(model)
    sweep = Sweep(known["smile"], Span(-2, 3))
    expected = strip_layout(Strip(model, [Subject("b", codes[1])], [sweep], 4))
    sheet = expected.blank()
    for column, strength in enumerate(np.linspace(-2, 3, 4)):
        code = edited(model, codes[1], (known["age"], 1.0), (known["smile"], strength))
        expected.paste(sheet, 0, column, picture(model, code))
    assert np.array_equal(np.asarray(sheet), pixels(strip))
    size = "image => [image.naturalWidth, image.naturalHeight]"
    assert tuple(page.eval_on_selector("#strip-shown img", size)) == expected.size
    tab.fits_a_phone()


def test_a_direction_of_a_file(
    tab: Tab, model: Model, codes: list[Code], command: Callable[[str], None], tmp_path: Path
) -> None:
    """Its slider edits as the engine does, beside one of the model, and the commands that are shown agree."""
    page = tab.page
    tab.choose_files("#load", tmp_path / "a.st")
    tab.shows_face("a")
    np.save(tmp_path / "beard.npy", np.random.default_rng(0).normal(size=16))
    (beard,) = import_directions(model, tmp_path / "beard.npy", "beard")
    tab.choose_files("#directions", tmp_path / "beard.npy")
    tab.says("Added: beard.")
    slider = page.locator("#imported input[type=range]")
    slider.fill("1.2")
    tab.shows(on_stage(model, edited(model, codes[0], (beard, 1.2))))
    tab.slider("smile").fill("-0.8")
    smile = load_directions(model)["smile"]
    tab.shows(on_stage(model, edited(model, codes[0], (smile, -0.8), (beard, 1.2))))
    np.save(tmp_path / "smile.npy", np.ones(16))
    tab.choose_files("#directions", tmp_path / "smile.npy")
    tab.says("smile.npy: there is already a direction named smile")

    tab.tab("Save")
    image = tab.download("#save-image", tmp_path / "made")
    for line in page.input_value("#commands textarea").splitlines():
        if not line.startswith("#"):
            command(line)
    assert np.array_equal(pixels(tmp_path / image.name), pixels(image))
    tab.tab("Edit")
    page.click("#direction-smile button.reset-button")
    tab.shows(on_stage(model, edited(model, codes[0], (beard, 1.2))))
    page.click("#reset")
    tab.shows(on_stage(model, codes[0]))
    assert [slider.input_value(), tab.slider("smile").input_value()] == ["0", "0"]
    tab.fits_a_phone()


def test_methods_side_by_side(tab: Tab, model: Model, tmp_path: Path) -> None:
    """Each has its picture, and its code among the faces; Escape ends it all, and keeps what is there."""
    page = tab.page
    tab.upload(smooth_photo(tmp_path / "party.png"))
    page.wait_for_selector(".ws-crop.picked")
    tab.tab("More")
    page.click("text=Methods side by side")
    for method in ("wrangan", "weight-tuning", "sg2-w", "sg2-w-plus", "pti"):
        page.set_checked(f"#methods input[name='{method}']", method in ("wrangan", "sg2-w"))

    page.fill("#seconds input[type=number]", "120")
    page.click("#side-by-side")
    page.wait_for_selector(".ws-progress:has-text('step')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stage .tag:has-text('inverted')")
    captions = page.locator("#methods-shown figcaption")
    assert captions.count() == 2  # the photograph, and the method that was stopped
    assert re.search(r"stopped after \d+ steps", captions.nth(1).inner_text())
    assert not page.is_visible("#stop")

    page.fill("#seconds input[type=number]", "1")
    page.click("#side-by-side")
    page.wait_for_selector("#methods-shown figure >> nth=2")
    page.wait_for_selector("#stop", state="hidden")
    assert page.locator("#methods-shown figcaption b").all_inner_texts() == [
        "photograph",
        "party-wrangan",
        "party-sg2-w",
    ]
    shown = [image.get_attribute("src") for image in page.locator("#methods-shown img").all()]
    assert all(a != b for a, b in itertools.pairwise(shown))
    tab.tab("Save")
    code = load_code(tab.download("#save-code", tmp_path / "made"), model)
    assert code.info["method"] == "sg2-w"
    assert shown[2] == pictures.url(picture(model, code))
    tab.tab("More")
    tab.fits_a_phone()
