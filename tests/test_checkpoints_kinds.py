"""Files that are no checkpoints are named for what they are."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.tensorfile import write_tensors
from wrangan_cli.engine.checkpoints.detect import read_checkpoint


def refusal(path):
    with pytest.raises(FileError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def tarred(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    return stream.getvalue()


def saved(save):
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


DRIVE = "<!DOCTYPE html><html><head><title>Google Drive - {}</title></head><body>{}</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 381673535\n"
S3 = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
PICTURE = Image.new("RGB", (8, 8))
KINDS = {
    "zipped": (
        zipped(**{"notes.txt": "a", "run__net.pkl": "b"}),
        "a zip with a checkpoint inside: unzip it first (run/net.pkl)",
    ),
    "zip of others": (zipped(a="", b=""), "a zip without a checkpoint: it holds a, b"),
    "empty zip": (zipped(), "an empty zip"),
    "npz": (saved(lambda s: np.savez(s, w=1)), "NumPy arrays (.npz), not the tensors of a network: w.npy"),
    "npy": (saved(lambda s: np.save(s, np.ones(2))), "a NumPy array (.npy)"),
    "gzip": (gzip.compress(b"data"), "compressed by gzip: gunzip it first"),
    "bzip2": (bz2.compress(b"data"), "compressed by bzip2: bunzip2 it first"),
    "xz": (lzma.compress(b"data"), "compressed by xz: unxz it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "compressed by zstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "a 7z archive"),
    "tar": (tarred("a/b.txt", "a/net.pt"), "a tar archive with a checkpoint inside: unpack it first (a/n"),
    "tar of others": (tarred("a.txt"), "a tar archive without a checkpoint: it holds a.txt"),
    "torch of 2016": (tarred("sys_info", "pickle", "tensors", "storages"), "PyTorch's format before 2017"),
    "tar, cut": (tarred("a.txt")[:600], "a tar archive"),
    "quota": (
        DRIVE.format("Quota exceeded", "Too many users have viewed or downloaded this file").encode(),
        "a web page in place of the file: Google Drive's download quota is exceeded",
    ),
    "virus scan": (
        DRIVE.format("Virus scan warning", "Google Drive can't scan this file for viruses.").encode(),
        "a web page in place of the file: Google Drive's virus scan warning; confirm the download",
    ),
    "page": (
        b"\xef\xbb\xbf\n<html><title>\n Sign in &amp; up\n</title>" + b"x" * 9000,
        "a web page in place of the file ('Sign in & up')",
    ),
    "lfs": (LFS, "a Git LFS pointer in place of the file of 381,673,535 bytes: fetch it with git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s381--4d7a.pkl\n", "a git-annex pointer"),
    "zeros": (bytes(9000), "nothing but zeros: a download that never finished"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(range(99)), "an ONNX network"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite network"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "png": (saved(lambda s: PICTURE.save(s, "PNG")), "an image (PNG)"),
    "jpeg": (saved(lambda s: PICTURE.save(s, "JPEG")), "an image (JPEG)"),
    "json": (json.dumps({"error": {"message": "Rate"}}).encode(), "JSON text, not a checkpoint ('Rate')"),
    "json list": (b"[1, 2]", "JSON text, not a checkpoint"),
    "xml": (S3, "an XML answer in place of the file ('Access Denied')"),
    "text": (b"Entry not found", "text, not a checkpoint ('Entry not found')"),
    "bytes": (b"\xfe\x01\x02\x03" * 9, "not a checkpoint: neither a PyTorch file nor a pickle nor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind, tmp_path):
    content, words = KINDS[kind]
    (tmp_path / "f.pt").write_bytes(content)
    assert refusal(tmp_path / "f.pt").startswith(words)


def test_the_command_names_them_too(tiny_folder, tmp_path):
    (tmp_path / "f.pt").write_bytes(LFS)
    for more in (["--out", str(tmp_path / "m")], ["--model", str(tiny_folder)]):
        result = CliRunner().invoke(app, ["convert-checkpoint", str(tmp_path / "f.pt"), *more])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "f.pt: a Git LFS pointer" in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_safetensors_of_something_else(tmp_path):
    path = tmp_path / "f.safetensors"
    write_tensors(path, {"w": torch.ones(2), "epsilon.conv1": torch.ones(2)}, {"kind": "code"})
    assert refusal(path) == "a file that wrangan wrote, not another project's checkpoint"
    save_file({"w": torch.ones(2), "epsilon.conv1": torch.ones(2)}, path)
    assert refusal(path).startswith("holds no StyleGAN2 generator; the file has ")
    assert "epsilon.conv1" in refusal(path)
    path.write_bytes(path.read_bytes()[:-5])
    assert refusal(path) == "the file is truncated"
    save_file({"a": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes()[:30])
    assert refusal(path) == "the file is truncated"


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_torchscript(tmp_path, monkeypatch):
    # A program: torch must not be asked to compile it.
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "f.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("compiled"))
    assert refusal(tmp_path / "f.pt").startswith("a TorchScript program (torch.jit.save), not weights")
