"""The standard streams: any file name can be read and written, and work continues if the reader goes away."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

from wrangan_cli.engine.base.errors import cause_of

_ERRORS = "wrangan"


def prepare_streams() -> None:
    """Let standard input and output pass file names of any bytes.

    Bytes that are not text are written as they were read; a character that the output's encoding lacks is
    written as `\\u03b5`. Streams that the caller closed are opened on the null device: otherwise the next
    file that is opened would get their descriptor, and receive what a library prints.
    """
    with contextlib.suppress(OSError):
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ERRORS, _escaped)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ERRORS)


def _escaped(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return b"".join(map(_bytes_of, part)), error.end


def _bytes_of(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":  # a byte of a name, as `surrogateescape` reads it
        return bytes([ord(character) - 0xDC00])
    return character.encode("ascii", "backslashreplace")


def write(text: str | bytes, remark: Callable[[str], None]) -> None:
    """Write to standard output and flush, in one piece, so that processes do not break each other's lines.

    Once writing fails, nothing more is written and the command continues: its files are worth more than
    the list of them. `remark` gets a message, unless the reader has merely gone away (`| head`).
    """
    stream = sys.stdout
    if stream is None:
        return
    try:
        if isinstance(text, bytes):
            stream.flush()
            stream.buffer.write(text)
        else:
            stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: closed
        sys.stdout = None  # type: ignore[assignment]
        if not isinstance(error, BrokenPipeError):
            remark(f"standard output: {cause_of(error)}; continuing without it")


def flushed(remark: Callable[[str], None]) -> bool:
    """Whether everything written to standard output has been flushed; if not, `remark` gets a message."""
    before = sys.stdout
    write("", remark)
    return sys.stdout is before


def read_names() -> Iterator[str]:
    """The file names on standard input, as they arrive: one per line, or each followed by a NUL byte
    (`find -print0`). Line ends may be CR LF, and a byte-order mark may come first.
    """
    assert sys.stdin is not None
    stream = getattr(sys.stdin, "buffer", None) or io.BytesIO(os.fsencode(sys.stdin.read()))
    encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    # The first data shows which of the two it is; the remaining lines are read as they arrive.
    seen = stream.peek() if hasattr(stream, "peek") else stream.getvalue()
    first = stream.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (first + stream.read()).decode("utf-16", "replace")
        yield from filter(str.strip, text.splitlines())
        return
    if first.startswith(codecs.BOM_UTF8):
        first, encoding = first.removeprefix(codecs.BOM_UTF8), "utf-8"
    if b"\0" in seen:
        yield from (os.fsdecode(name) for name in (first + stream.read()).split(b"\0") if name)
        return
    line = first
    while line:
        name = line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding, "surrogateescape")
        if name.strip():
            yield name
        line = stream.readline()
