"""The standard streams: they take every name, and no reader of theirs stops the work."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

from wrangan_cli.engine.base.errors import cause_of

_ERRORS = "wrangan"


def prepare_streams() -> None:
    """Let standard input and output pass on whatever names are made of.

    Bytes that are no text go out as they came in; a character that the output's code page lacks is
    written as `\\u03b5`. The numbers of streams that the caller closed are taken by the null device:
    otherwise the next file that is opened gets one, and what a library prints goes into it.
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
    """Write to standard output and flush, in one piece (of several processes none breaks another's line).

    bytes: as they are. Where that cannot be done any more, nothing is written from here on: what a
    command makes is worth more than the list of it. `remark` is told, unless only the reader is
    gone (`| head`).
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
            remark(f"standard output: {cause_of(error)}; the work goes on")


def flushed(remark: Callable[[str], None]) -> bool:
    """Whether all that was written so far to standard output has gone out; `remark` is told if not."""
    before = sys.stdout
    write("", remark)
    return sys.stdout is before


def listed() -> Iterator[str]:
    """The names on standard input, as they come: one a line, or each with a NUL byte behind it
    (`find -print0`). Line ends may be CR LF, and a byte-order mark may stand in front.
    """
    assert sys.stdin is not None
    stream = getattr(sys.stdin, "buffer", None) or io.BytesIO(os.fsencode(sys.stdin.read()))
    encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    # What has come so far tells the kinds apart; the rest of the lines is read as it comes.
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
