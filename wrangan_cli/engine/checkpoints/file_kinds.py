"""Recognise files that are not checkpoints by their first bytes, and say in one line what to do."""

import html
import json
import re
import tarfile
import zipfile
from pathlib import Path

from wrangan_cli.engine.checkpoints.records import listed
from wrangan_cli.engine.data import image_kinds

HEAD = 4096
"""Number of initial bytes that `describe` needs."""
QUOTED = 120
"""Number of characters quoted from a server's answer."""

_STARTS = (
    (b"\x1f\x8b", "compressed by gzip: gunzip it first (a .tar.gz: tar xf)"),
    (b"BZh", "compressed by bzip2: bunzip2 it first (a .tar.bz2: tar xf)"),
    (b"\xfd7zXZ\0", "compressed by xz: unxz it first (a .tar.xz: tar xf)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unzstd it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array (.npy), not the tensors of a network"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (as Keras writes), which is not read"),
    (b"GGUF", "a GGUF file, a language model's format"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program (ELF)"),
    (b"PK\x05\x06", "an empty zip"),
)
_CHECKPOINT_SUFFIXES = (".pkl", ".pt", ".pth", ".pickle", ".ckpt", ".bin", ".safetensors")
_HEADS_OF_ONNX = (b"pytorch", b"onnx", b"tf2onnx", b"keras2onnx", b"skl2onnx", b"paddle")


def describe(path: Path, head: bytes) -> str:
    """What the file is, if its first bytes are not those of a checkpoint; "" if unknown.

    head: its first HEAD bytes. Files of `torch.save`, pickles and safetensors files give "".
    """
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if not head.strip(b"\0"):
        return "nothing but zeros: a download that never finished"
    if tarfile_like(head):
        return _tar(path)
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and any(name in head[:64] for name in _HEADS_OF_ONNX):
        return "an ONNX network, which is not read: give the PyTorch file that it was exported from"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite network, which is not read"
    image = image_kinds.kind_of(head[: image_kinds.HEAD])
    if image:
        return f"an image ({image})"
    return _text(path, head)


def is_safetensors(head: bytes) -> bool:
    """Whether a file starts like a safetensors file: with the length of a JSON record, and the record."""
    return (
        len(head) > 9 and int.from_bytes(head[:8], "little") < 2**32 and head[8:10] in (b'{"', b"{}", b"{ ")
    )


def tarfile_like(head: bytes) -> bool:
    """Whether a file starts like a tar archive."""
    return head[257:262] == b"ustar"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError):
        return "the file is truncated"  # a zip's table of contents is at its end
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy arrays (.npz), not the tensors of a network: {listed(names)}"
    return _archive("zip", "unzip", names)


def _tar(path: Path) -> str:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, OSError, ValueError):
        return "a tar archive that is truncated"
    if {"storages", "tensors", "pickle"} <= set(names):
        return "PyTorch's format before 2017 (a tar archive): load and save it with PyTorch again"
    return _archive("tar archive", "unpack", names)


def _archive(kind: str, verb: str, names: list[str]) -> str:
    wanted = [name for name in names if name.lower().endswith(_CHECKPOINT_SUFFIXES)]
    if wanted:
        return f"a {kind} with a checkpoint inside: {verb} it first ({listed(wanted)})"
    return f"a {kind} without a checkpoint: it holds {listed(names) or 'nothing'}"


def _text(path: Path, head: bytes) -> str:
    """A server's answer saved in place of the file, or a pointer to a file."""
    try:
        # The last character may be cut off, which leaves at most three bytes.
        text = head.decode("utf-8-sig", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return ""
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return ""
    start = text.lstrip()
    if start.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)$", text, re.M)
        whole = f" of {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer in place of the file{whole}: fetch it with git lfs pull"
    if re.match(r"(\.\./)*[\w./-]*\.?git/annex/objects/|/annex/objects/", start):
        return "a git-annex pointer in place of the file: fetch it with git annex get"
    if re.match(r"<!doctype html|<html|<head|<script|<meta", start, re.I):
        return _page(path)
    if re.match(r"<\?xml|<error|<[a-z]+[\s>]", start, re.I):
        said = re.search(r"<message>([^<]*)", start, re.I) or re.search(r"<code>([^<]*)", start, re.I)
        return "an XML answer in place of the file" + _quoted(said[1] if said else "")
    if start[:1] in ("{", "["):
        return _json(text)
    return f"text, not a checkpoint{_quoted(start.split(chr(10))[0])}"


def _page(path: Path) -> str:
    with open(path, "rb") as stream:
        page = stream.read(2**20).decode("utf-8", "ignore")
    kind = "a web page in place of the file"
    if re.search(r"quota exceeded|too many users have viewed", page, re.I):
        return f"{kind}: Google Drive's download quota is exceeded; try again in a day, or from another link"
    if re.search(r"virus scan warning|scan this file for viruses", page, re.I):
        return f"{kind}: Google Drive's virus scan warning; confirm the download in a browser, or use gdown"
    title = re.search(r"<title[^>]*>([^<]*)", page, re.I)
    return kind + _quoted(html.unescape(title[1]) if title else "")


def _json(text: str) -> str:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return "JSON text, not a checkpoint"
    for _ in range(3):
        if not isinstance(answer, dict):
            break
        answer = next(
            (answer[key] for key in ("error", "message", "detail", "errors") if key in answer), None
        )
    return "JSON text, not a checkpoint" + _quoted(answer if isinstance(answer, str) else "")


def _quoted(text: str) -> str:
    line = " ".join(text.split())[:QUOTED]
    return f" ({line!r})" if line else ""
