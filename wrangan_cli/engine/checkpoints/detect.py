"""Which of the known formats a checkpoint file has, and its contents as a `Checkpoint`."""

import zipfile
from pathlib import Path
from typing import Any

from wrangan_cli.engine.checkpoints import nvidia_tf, nvidia_torch, rosinality
from wrangan_cli.engine.checkpoints.records import Checkpoint, NotConvertible
from wrangan_cli.engine.checkpoints.restricted_unpickler import READ_ERRORS, one_line, printable, read_pickle
from wrangan_cli.engine.errors import FileError

_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save began before they were zip archives: a pickled magic number."""


def read_checkpoint(path: Path, raw: bool = False) -> Checkpoint:
    """Read a rosinality `.pt`, an NVIDIA PyTorch `.pkl` or an NVIDIA TensorFlow `.pkl`.

    raw: the generator as trained instead of its moving average. The form is told by the
    contents, not by the name; nothing in the file is executed. Raises FileError:
    unreadable, truncated, refused, or not convertible, with the reason.
    """
    start = _beginning(path)
    try:
        if _is_torch(start):
            return rosinality.from_contents(torch_contents(path), raw)
        # Every pickle of protocol 2 or newer starts with the PROTO instruction.
        if start[0] != 0x80:
            raise FileError(path, "not a checkpoint: neither a PyTorch file nor a pickle")
        data = read_pickle(path)
        if nvidia_torch.is_torch_pickle(data):
            return nvidia_torch.from_pickle(data, raw)
        if nvidia_tf.is_tensorflow_pickle(data):
            return nvidia_tf.from_pickle(data, raw)
    except NotConvertible as error:
        raise FileError(path, printable(str(error))) from error
    except READ_ERRORS as error:
        # Contents of an unexpected type, such as a clamp that is a list.
        raise FileError(path, one_line(error)) from error
    raise FileError(path, "a pickle, but not one of NVIDIA's StyleGAN2 networks")


def torch_contents(path: Path) -> Any:
    """Tensors and plain values of a torch file; FileError where it is broken or holds anything else."""
    start = _beginning(path)
    if not _is_torch(start):
        raise FileError(path, "not a PyTorch file")
    try:
        return rosinality.load(path)
    except READ_ERRORS as error:
        # A zip's table of contents stands at its end.
        cut = start.startswith(b"PK") and not zipfile.is_zipfile(path)
        raise FileError(path, "the file is truncated" if cut else one_line(error)) from error


def _beginning(path: Path) -> bytes:
    """The first bytes of a file; FileError where there is none or it is empty."""
    if path.is_dir():
        raise FileError(path, "a folder, not a checkpoint file")
    if not path.is_file():
        raise FileError(path, "no such file")
    with open(path, "rb") as stream:
        start = stream.read(len(_TORCH_LEGACY))
    if not start:
        raise FileError(path, "the file is empty")
    return start


def _is_torch(start: bytes) -> bool:
    return start.startswith(b"PK") or start == _TORCH_LEGACY
