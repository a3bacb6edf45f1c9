"""What the studio does without its page: sessions, images, files, and the commands that make the same."""

import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.code_files import pixels
from tests.conftest import write_photo
from tests.face_cases import LANDMARKS, FakeDetector, detector, smooth_photo
from tests.studio_cases import STEPS, studio_model
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.data.marks import MARK, SOFTWARE
from wrangan_cli.engine.editing.interpolation import code_between, interpolate_codes
from wrangan_cli.engine.editing.sweeps import Span
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.codes import Code, load_code, save_code
from wrangan_cli.studio import lines, pictures
from wrangan_cli.studio.session import RESTED, Session, Sessions
from wrangan_cli.studio.work import Forming, Work

__all__ = ["detector"]  # a fixture

PHOTO_WIDTH = 240
"""Of the photograph in which `detector` finds one face."""


@pytest.fixture
def work(tiny_folder: Path) -> Work:
    return Work(studio_model(tiny_folder))


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions() as opened:
        yield opened


@pytest.fixture
def session(sessions: Sessions) -> Session:
    return sessions.of("tab")


def uploaded(session: Session, folder: Path, name: str = "party.png") -> Path:
    folder.mkdir(exist_ok=True)
    return session.keep(smooth_photo(folder / name, PHOTO_WIDTH))


def run_through(work: Work, session: Session, settings: InversionSettings | None = None) -> list[Forming]:
    assert session.chosen is not None
    return list(work.invert(session, session.chosen, settings or work.settings("wrangan")))


@pytest.fixture
def inverted(work: Work, session: Session, detector: type[FakeDetector], tmp_path: Path) -> Session:  # noqa: ARG001
    """A session with a face of a snapshot inverted."""
    session.chosen = work.crops_of(session, uploaded(session, tmp_path / "uploads"))[0]
    run_through(work, session)
    return session


def test_the_way_is_that_of_the_commands(
    work: Work, inverted: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command lines that the page shows, run as they are, make its pictures to the pixel."""
    inverted.set({"smile": 1.5, "pose": -0.7, "age": 0.0})
    image, pasted = work.save_edit(inverted), work.save_paste(inverted, 0.2, True)
    place = tmp_path / "shell"
    place.mkdir()
    smooth_photo(place / "party.png", PHOTO_WIDTH)
    monkeypatch.chdir(place)
    made = work.lines_of_edit(inverted, 0.2, True)
    assert [shlex.split(line)[1] for line in made] == ["align", "invert", "edit", "paste"]
    model = str(work.model.path)
    for line in made:
        words = [model if word == work.model.name else word for word in shlex.split(line)[1:]]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert np.array_equal(pixels(place / image.name), pixels(image))
    assert np.array_equal(pixels(place / pasted.name), pixels(pasted))
    assert not np.array_equal(pixels(image), np.asarray(work.original(inverted, inverted=True)))
    for path in (image, pasted, place / image.name, place / pasted.name):
        with Image.open(path) as picture:
            assert picture.info["Software"] == SOFTWARE
            assert picture.info["Comment"] == MARK


def test_the_image_forms_and_the_last_word_is_the_code(work: Work, inverted: Session) -> None:
    assert inverted.current is not None
    assert inverted.current.code.info["steps"] == STEPS
    assert inverted.current.code.info["source"] == "party.png"
    again = run_through(work, inverted)
    steps = [forming.step for forming in again if forming.steps]
    assert steps[-1] == STEPS
    assert steps == sorted(steps)
    assert any(forming.image is not None for forming in again)
    assert inverted.current.name == "party-wrangan"  # beside the first, which stays
    assert list(inverted.subjects) == ["party", "party-wrangan"]
    first, second = (subject.code for subject in inverted.subjects.values())
    assert torch.equal(first.w, second.w)


def test_stopping_keeps_what_is_there(work: Work, inverted: Session) -> None:
    assert inverted.chosen is not None
    for forming in work.invert(inverted, inverted.chosen, work.settings("wrangan", steps=2000)):
        if forming.step >= 3:
            inverted.stop.set()
    assert forming.subject is not None
    code = forming.subject.code
    assert 3 <= code.info["steps"] < 2000
    assert code.info["stopped"] == code.info["steps"]
    assert forming.subject.lines == ()  # no command makes it again
    # The same schedule: the steps that were done are the first ones of the whole run.
    assert work.rendered(code).size == (16, 16)


def test_a_watched_inversion_gives_the_same_code(work: Work, inverted: Session) -> None:
    from wrangan_cli.engine.inversion.inverter import Inverter

    assert inverted.current is not None
    assert inverted.current.crop is not None
    inverter = Inverter.load(work.model, work.settings("wrangan"))
    (alone,) = inverter.invert(inverter.load_photo(inverted.current.crop.picture)[None])
    assert isinstance(alone, Code)
    assert torch.equal(alone.w, inverted.current.code.w)


def test_one_inversion_at_a_time(work: Work, inverted: Session) -> None:
    assert inverted.chosen is not None
    with work._inverting:
        way = work.invert(inverted, inverted.chosen, work.settings("wrangan"))
        assert next(way).waiting
    assert [forming for forming in way if forming.subject]


def test_a_tab_that_is_gone_stops_its_inversion(work: Work, inverted: Session) -> None:
    assert inverted.chosen is not None
    way = work.invert(inverted, inverted.chosen, work.settings("wrangan", steps=100_000))
    while next(way).step < 1:
        pass
    way.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "wrangan-inversion"]


def test_sessions_do_not_mix_and_leave_nothing(tmp_path: Path) -> None:
    with Sessions() as sessions:
        one, other = sessions.of("one"), sessions.of("other")
        kept = one.keep(write_photo(tmp_path / "me.png"))
        assert kept.is_file()
        assert not (tmp_path / "me.png").exists()
        assert one.folder != other.folder
        assert not list(other.folder.rglob("*.png"))
        assert (one.folder.stat().st_mode & 0o077) == 0
        sessions.close("one")
        assert not kept.exists()
        assert other.folder.is_dir()
        assert sessions.of("one").subjects == {}
        root = sessions.root
    assert not root.exists()


def test_names_of_uploads(session: Session, tmp_path: Path) -> None:
    names = ["a.png", "a.png", "A.JPG", "..png", "x;rm -rf.png"]
    stems = [
        session.keep(write_photo(tmp_path / str(i) / "f.png"), name).stem for i, name in enumerate(names)
    ]
    assert len({stem.casefold() for stem in stems}) == len(names)  # none takes another's place
    assert stems[:3] == ["a", "a-2", "A-3"]
    assert all(path.parent == session.folder / "photos" for path in session.known_as)


def test_undo_goes_back_one_drawn_edit_at_a_time(work: Work, session: Session) -> None:
    work.random(session, 3)
    assert not session.undo()
    for strengths in ({"smile": 1.0}, {"smile": 1.0, "age": 2.0}):
        session.set(strengths)
        session.remember()
        session.remember()
    session.set({"smile": -3.0})  # not drawn yet
    versions = [session.version]
    for expected in ({"smile": 1.0, "age": 2.0}, {"smile": 1.0}, {}):
        assert session.undo()
        assert session.strengths == expected
        versions.append(session.version)
    assert not session.undo()
    assert versions == sorted(set(versions))


def test_a_slider_that_rests_ends_an_edit(work: Work, session: Session) -> None:
    """Undo goes back to where a slider rested, or another one began; not to each place on the way."""
    work.random(session, 3)

    def move(name: str, *strengths: float, after: float = 0.0) -> None:
        session.drawn_at = time.monotonic() - after
        for strength in strengths:
            session.move(name, strength)
            session.drawn_at = time.monotonic()

    move("smile", 0.5, 1.0)
    move("smile", 1.5, 2.0, after=2 * RESTED)
    move("age", -1.0, -0.5)
    move("age", 0.0, after=2 * RESTED)
    for expected in ({"smile": 2.0, "age": -0.5}, {"smile": 2.0}, {"smile": 1.0}, {}):
        assert session.undo()
        assert session.strengths == expected
    assert not session.undo()


def test_random_face_is_that_of_generate(work: Work, session: Session, tmp_path: Path) -> None:
    work.random(session, 5)
    (line,) = work.lines_of_edit(session)
    words = [str(work.model.path) if w == work.model.name else w for w in shlex.split(line)[1:-1]]
    out = tmp_path / "face.png"
    assert CliRunner().invoke(app, [*words, str(out)]).exit_code == 0
    assert np.array_equal(pixels(out), np.asarray(work.rendered(work.edited(session))))


def test_codes_come_and_go(work: Work, session: Session, sessions: Sessions) -> None:
    work.random(session, 5)
    session.set({"smile": 2.0})
    plain, edited = work.save_code(session), work.save_code(session, edited=True)
    other = sessions.of("other")
    subject = work.load(other, plain)
    assert torch.equal(subject.code.w, load_code(plain).w)
    assert not torch.equal(load_code(edited).w, subject.code.w)
    assert load_code(edited).info["edits"] == [{"direction": "smile", "strength": 2.0}]
    strange = session.folder / "strange.st"
    save_code(strange, Code(subject.code.w, info={"model": "no", "model_sha256": "0"}))
    with pytest.raises(FileError, match="made for another model"):
        work.load(other, strange)


def test_between_strip_and_film_are_those_of_the_commands(
    work: Work, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        work.random(session, seed)
        save_code(tmp_path / f"seed-{seed}.st", session.subjects[f"seed-{seed}"].code)
    session.set({"age": 1.0})
    strip = work.save_strip(session, "smile", Span(-2, 2), 3)
    film = work.save_way(session, ["seed-1", "seed-2"], 4, 5, ".gif")
    monkeypatch.chdir(tmp_path)
    for line, made in (
        (work.line_of_strip(session, "smile", Span(-2, 2), 3, strip.name), strip),
        (work.line_of_way(["seed-1", "seed-2"], 4, 5, film.name), film),
    ):
        words = [str(work.model.path) if w == work.model.name else w for w in shlex.split(line)[1:]]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert (tmp_path / made.name).read_bytes() == made.read_bytes()
    assert MARK.encode() in film.read_bytes()
    one, other = session.subjects["seed-1"].code, session.subjects["seed-2"].code
    expected = list(interpolate_codes([one, other], 5, work._rows))[1]
    assert torch.allclose(code_between([one, other], 0.25, work._rows).w, expected.w)
    with pytest.raises(UsageError, match="position"):
        code_between([one, other], 1.5, work._rows)


def test_directions_of_a_file(work: Work, session: Session, tmp_path: Path) -> None:
    work.random(session, 1)
    path = tmp_path / "beard.npy"
    np.save(path, np.random.default_rng(0).normal(size=16))
    assert [direction.name for direction in work.import_file(session, path, 12)] == ["beard"]
    session.set({"beard": 1.0, "smile": -1.0})
    made = work.lines_of_edit(session)
    assert [shlex.split(line)[1:3] for line in made] == [
        ["edit", "seed-1.st"],
        ["directions", "import"],
        ["edit", "seed-1-edited-1.st"],
    ]
    with pytest.raises(FileError, match="already"):
        work.import_file(session, path, 12)
    with pytest.raises(FileError, match="room for 0"):
        work.import_file(session, path, 0)


def test_lines_say_settings_that_are_not_the_defaults() -> None:
    assert lines.of_settings(inversion_settings()) == []
    chosen = inversion_settings("weight-tuning", seconds=2.5, unseen=True)
    assert lines.of_settings(chosen) == ["--method", "weight-tuning", "--seconds", "2.5", "--unseen"]
    assert lines.command("edit", "my face.st") == "wrangan edit 'my face.st'"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileError("/tmp/secret-folder/me.jpg", "broken <image>"), "me.jpg: broken &lt;image&gt;"),
        (MemoryError(), "out of memory: close other tabs or use a smaller model"),
        (UsageError("no"), "no"),
    ],
)
def test_problems_are_sentences_without_paths(error: Exception, said: str) -> None:
    assert f">{said}</p>" in pictures.problem(error)


def test_methods_are_those_that_the_model_has(work: Work) -> None:
    assert "wrangan" in work.methods
    assert not {"encoder", "e4e", "restyle", "hyperstyle"} & set(work.methods)
    assert work.settings("wrangan").init == "mean"  # it has no encoder


def test_without_a_face_the_whole_picture_is_taken(
    work: Work, session: Session, detector: type[FakeDetector], tmp_path: Path
) -> None:
    detector.faces = {PHOTO_WIDTH: [LANDMARKS, LANDMARKS * 0.5 + 80]}
    photo = uploaded(session, tmp_path / "uploads")
    assert [crop.name for crop in work.crops_of(session, photo)] == ["party", "party-2"]
    session.chosen = work.whole(session, photo)
    run_through(work, session)
    with pytest.raises(UsageError, match="pasted back"):
        work.save_paste(session, 0.1, False)
    line = work.lines_of_edit(session)[0]
    assert shlex.split(line)[1:3] == ["invert", "party.png"]


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["studio", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "--port" in result.output
