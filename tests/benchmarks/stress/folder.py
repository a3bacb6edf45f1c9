"""Fifty hostile files in a folder of a thousand: good ones must be inverted, each bad one reported once."""

import json
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.stress.samples import INVERT, SIDE, tiny_model
from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code

GOOD, HOSTILE = 950, 50
LIMIT = 1800
"""Seconds for the whole folder."""
NAMED, SILENT, COUNTED, READ = "named", "silent", "counted", "read"
"""The expected result of a hostile entry: a line that names it; nothing at all (hidden files, and folders);
included in the number of skipped files; a code, since only its name is odd."""


def run(work: Path, seed: int) -> list[dict[str, Any]]:
    """Run `invert` on the folder; returns one row with its contents and the results."""
    model = tiny_model(work / "tiny")
    photos = work / "photos"
    photos.mkdir()
    for number in range(GOOD):
        suffix = ("png", "jpg", "webp", "bmp")[number % 4]
        write_photo(photos / f"good-{number:04d}.{suffix}", SIDE, seed=seed + number)
    hostile = dict(_hostile(photos, random.Random(seed)))
    assert len(hostile) == HOSTILE, len(hostile)
    command = [sys.executable, "-m", "wrangan_cli", "invert", str(photos), "--model", str(model.path)]
    result = subprocess.run(
        [*command, *INVERT, "--batch", "32", "--json", "--out", str(work / "codes")],
        capture_output=True,
        timeout=LIMIT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
    )
    faults = list(_faults(work, photos, hostile, result))
    counts = {kind: sum(k == kind for k in hostile.values()) for kind in (NAMED, COUNTED, SILENT, READ)}
    done = len(list((work / "codes").glob("*.st")))
    # The peak of all children so far; this one holds the largest pictures.
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    named = {f"hostile, {kind}": count for kind, count in counts.items()}
    return [{"good": GOOD, **named, "codes": done, "peak_mib": peak, "faults": faults}]


def _faults(
    work: Path, photos: Path, hostile: dict[str, str], result: "subprocess.CompletedProcess[bytes]"
) -> Iterator[dict[str, Any]]:
    text = result.stderr.decode()
    lines = text.splitlines()

    def fault(said: str) -> dict[str, Any]:
        return {"fault": "folder", "said": said}

    if result.returncode != 1:
        yield fault(f"exit code {result.returncode}: {text[-500:]}")
    named = [line for line in lines if line.startswith(f"wrangan: {photos}{os.sep}")]
    for name, fate in hostile.items():
        begins = f"wrangan: {_escaped(str(photos / name))}: "
        count = sum(line.startswith(begins) for line in lines)
        if count != (fate == NAMED):
            yield fault(f"{name!r} ({fate}) is named {count} times")
    if len(named) != sum(fate == NAMED for fate in hostile.values()):
        yield fault(f"{len(named)} lines name an entry")
    counted = sum(fate == COUNTED for fate in hostile.values())
    if sum(f"{counted} files that are not images skipped" in line for line in lines) != 1:
        yield fault(f"no line counts {counted} files that are skipped")
    yield from (fault(f"a line of no command: {line}") for line in lines if not line.startswith("wrangan: "))
    read = {name for name, fate in hostile.items() if fate == READ}
    wanted = {path.name for path in photos.glob("good-*") if path.name not in hostile} | read
    records = [json.loads(line) for line in result.stdout.splitlines()]
    model = load_model(str(work / "tiny"))
    done = set()
    for record in records:
        photo = Path(record["photo"]).name
        done.add(photo)
        try:
            if load_code(Path(record["path"]), model).info["source"] != photo:
                yield fault(f"{record['path']} is of another photograph than {photo}")
        except WranganError as error:
            yield fault(str(error))
    if len(records) != len(done) or done != wanted:
        yield fault(f"{len(records)} records; without a code: {sorted(wanted - done)[:5]}")
    there = set((work / "codes").iterdir())
    if there != {Path(record["path"]) for record in records}:
        yield fault("the folder of codes holds something else than what was printed")


def _escaped(text: str) -> str:
    return "".join(repr(c)[1:-1] if ord(c) < 32 or "\ud800" <= c <= "\udfff" else c for c in text)


def _hostile(photos: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Create the entries; yields the name of each and its expected result."""
    whole = write_photo(photos.parent / "whole.png", SIDE).read_bytes()
    jpeg = write_photo(photos.parent / "whole.jpg", 64).read_bytes()

    def content(name: str, data: bytes, fate: str = NAMED) -> tuple[str, str]:
        with open(os.fsencode(photos / name), "wb") as stream:
            stream.write(data)
        return name, fate

    # Only the name is odd.
    for name in ("line\nend.png", "return\rback.png", "bytes-\udcff\udcfe.png", "escape-\x1b[2J.png"):
        yield content(name, whole, READ)
    for name in ("-rf.png", "a" * 240 + ".png", "  spaces  .png", "'\"$(reboot)`;&|.png", "[bold]red[-].png"):
        yield content(name, whole, READ)
    yield content("%s%n%x.png", whole, READ)
    for letter in ("é", "ü"):
        composed, apart = (unicodedata.normalize(form, letter) for form in ("NFC", "NFD"))
        yield content(f"twin-{apart}.png", whole, READ)
        # Of two that would write the same code, the first by name is kept.
        yield content(f"twin-{composed}.png", whole, NAMED)
    yield content("good-0001.png", whole, NAMED)
    # Entries without a regular file.
    for name, target in (("dead.png", "nowhere"), ("circle.png", "circle.png"), ("ping.jpg", "pong.jpg")):
        os.symlink(target, photos / name)
        yield name, NAMED
    os.symlink("ping.jpg", photos / "pong.jpg")
    yield "pong.jpg", NAMED
    os.symlink("/dev/zero", photos / "zero.png")
    yield "zero.png", NAMED
    os.mkfifo(photos / "pipe.png")
    yield "pipe.png", NAMED
    os.mkfifo(photos / "pipe")
    yield "pipe", COUNTED
    # Bound by a short relative name, since a socket's path must be short.
    here = os.getcwd()
    os.chdir(photos)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.png")
    finally:
        os.chdir(here)
    yield "socket.png", NAMED
    (photos / "folder.png").mkdir()
    yield "folder.png", SILENT
    os.symlink("..", photos / "up.png")
    yield "up.png", SILENT
    # Hostile contents.
    yield content("empty.jpg", b"")
    yield content("zeros.png", bytes(1000))
    yield content("noise-\udcfe.webp", rng.randbytes(2000))
    yield content("page\n\x1b[31m.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    yield content("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    yield content("script.png", b"#!/bin/sh\nexit 1\n")
    yield content("half.jpg", jpeg[: len(jpeg) // 2])
    yield content("half.png", whole[: len(whole) // 2])
    yield content("head.png", whole[:20])
    yield content("archive.png", b"PK\3\4" + bytes(100))
    yield content("bomb.png", _png(30_000, 30_000, zlib.compress(bytes(30_001 * 3 * 100), 9)))
    yield content("bomb-within.png", _png(19_000, 19_000, b"x"))
    yield content("wide.png", _png(2**31 - 1, 16, b"x"))
    yield content(
        "huge.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 10**6, 10**6, 1, 24, *[0] * 6)
    )
    yield content(
        "huge.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0"
    )
    yield content("huge.ppm", b"P6 99999 99999 255\n" + bytes(100))
    yield content("dot.png", _png(1, 1, zlib.compress(bytes(4))))
    yield content("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    yield content("raw.nef", b"MM\0*" + bytes(100))
    # Not photographs.
    yield content("notes.txt", b"no photograph", COUNTED)
    yield content("._good-0001.jpg", b"\0\5\x16\7" + bytes(100), SILENT)
    yield content(".DS_Store", b"\0\0\0\1Bud1", SILENT)
    yield content("Thumbs.db", bytes(100), SILENT)
    yield content("desktop.ini", b"[.ShellClassInfo]", SILENT)
    if os.geteuid() == 0:
        # root may read everything: use another broken link instead.
        os.symlink("gone/away", photos / "forbidden.png")
    else:
        content("forbidden.png", whole)
        (photos / "forbidden.png").chmod(0)
    yield "forbidden.png", NAMED


def _png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG whose header states this size, 8-bit RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
