"""Names that are one name: in NFC and in NFD, with and without case."""

import os
import unicodedata
from pathlib import Path

import pytest

from tests.code_files import make_code
from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.names import existing_form, same_file_key, same_name
from wrangan_cli.engine.faces.align_photos import PhotoAligner
from wrangan_cli.engine.inversion.folder import plan
from wrangan_cli.engine.metrics.pairs import compare_pairs, pair_by_stem
from wrangan_cli.engine.models.codes import save_code
from wrangan_cli.engine.models.folder import Model

NFC = unicodedata.normalize("NFC", "Zoë été")
NFD = unicodedata.normalize("NFD", NFC)

pytestmark = pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="two files there")


def test_forms() -> None:
    assert NFC != NFD
    assert same_name(NFD) == same_name(NFC) == NFC
    assert same_file_key(Path("a") / NFD.upper()) == same_file_key(Path("a") / NFC)
    assert same_file_key(Path("A/x")) != same_file_key(Path("a/x"))


def test_a_code_of_the_other_form_is_the_code_of_the_photograph(tmp_path: Path) -> None:
    (tmp_path / f"{NFC}.st").touch()
    assert existing_form(tmp_path / f"{NFD}.st") == tmp_path / f"{NFC}.st"
    jobs, clashes = plan([tmp_path / f"{NFD}.jpg"], tmp_path)
    assert [job.code for job in jobs] == [tmp_path / f"{NFC}.st"]
    assert not clashes


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_two_photographs_that_would_write_one_code(suffix: str, tmp_path: Path) -> None:
    jobs, (clash,) = plan([tmp_path / f"{NFC}.jpg", tmp_path / f"{NFD}{suffix}"], tmp_path / "codes")
    assert [job.photo.name for job in jobs] == [f"{NFC}.jpg"]
    assert "differs in its Unicode form only" in str(clash)
    assert str(clash).startswith(str(tmp_path / f"{NFD}{suffix}"))


def test_two_photographs_that_would_write_one_face(tmp_path: Path) -> None:
    aligner = object.__new__(PhotoAligner)
    aligner.out, aligner._claims, aligner._photos = tmp_path / "out", {}, set()
    first, second = tmp_path / f"{NFC}.jpg", tmp_path / f"{NFD}.jpg"
    refused = aligner.reserve([first, second])
    assert list(refused) == [second]


@pytest.mark.parametrize(("photo", "code"), [(NFC, NFD), (NFD, NFC)])
def test_pairs_across_forms(photo: str, code: str, tmp_path: Path, tiny_model: Model) -> None:
    write_photo(tmp_path / "photos" / f"{photo}.png")
    save_code(tmp_path / "codes" / f"{code}.st", make_code(tiny_model))
    (pair,), left = pair_by_stem(tmp_path / "photos", tmp_path / "codes")
    assert (pair.photo.stem, pair.code.stem) == (photo, code)
    assert not left
    save_code(tmp_path / "codes" / f"{photo}.st", make_code(tiny_model))
    _, (other,) = pair_by_stem(tmp_path / "photos", tmp_path / "codes")
    assert isinstance(other, FileError)
    assert "Unicode form" in str(other)


def test_a_photograph_that_changed_since_its_inversion(
    tmp_path: Path, tiny_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    from wrangan_cli.engine.base.files import sha256

    photo = write_photo(tmp_path / "photos" / "a.png")
    code = make_code(tiny_model)
    code = replace(code, info={**code.info, "source_sha256": sha256(photo)})
    save_code(tmp_path / "codes" / "a.st", code)
    pairs, _ = pair_by_stem(tmp_path / "photos", tmp_path / "codes")
    list(compare_pairs(tiny_model, pairs, {}))
    assert not caplog.messages
    write_photo(photo, seed=9)
    list(compare_pairs(tiny_model, pairs, {}))
    assert caplog.messages == [f"{photo}: not the file from which {tmp_path / 'codes' / 'a.st'} was made"]
