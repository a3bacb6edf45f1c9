"""Detect the format of a checkpoint file, and read it as a `Checkpoint`."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints import file_kinds, nvidia_tf, nvidia_torch, rosinality
from wrangan_cli.engine.checkpoints.records import Checkpoint, NotConvertible
from wrangan_cli.engine.checkpoints.restricted_unpickler import (
    READ_ERRORS,
    load_pickle,
    load_torch,
    one_line,
    printable,
)
from wrangan_cli.engine.checkpoints.unwrapping import NVIDIA, contents_of, generator_of

_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Near the start of torch.save's files before they were zip archives: a pickled magic number."""

_PICKLE = 0x80
"""The instruction PROTO, with which every pickle of protocol 2 or newer starts."""


def read_checkpoint(path: Path, raw: bool = False) -> Checkpoint:
    """Read a StyleGAN2 of rosinality or NVIDIA from a file of PyTorch, a pickle or a safetensors file.

    raw: the generator as trained in place of its moving average. The format is recognised by the
    contents, not by the name; nothing in the file is executed. Raises FileError:
    unreadable, truncated, refused, or not convertible, with the reason.
    """
    data = read_data(path)
    try:
        networks = nvidia_tf.networks_of(data)
        if networks:
            return nvidia_tf.from_networks(networks, raw)
        contents = contents_of(data)
        generator = generator_of(contents, raw)
        family = nvidia_torch if generator.place.family == NVIDIA else rosinality
        return family.from_contents(contents, generator)
    except NotConvertible as error:
        raise FileError(path, printable(str(error))) from error
    except READ_ERRORS as error:
        # Contents of an unexpected type, such as a clamp that is a list.
        raise FileError(path, one_line(error)) from error


def read_data(path: Path) -> Any:
    """The data of a file of PyTorch, a pickle or a safetensors file: plain values, tensors and stand-ins.

    Raises FileError: no such file, another format (which the error names), broken, or refused.
    """
    if path.is_dir():
        raise FileError(path, "a folder, not a checkpoint file")
    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        with open(path, "rb") as stream:
            head = stream.read(file_kinds.HEAD)
            if not head:
                raise FileError(path, "the file is empty")
            kind = file_kinds.describe(path, head)
            if kind:
                raise FileError(path, printable(kind))
            if head.startswith(b"PK") or (head[0] == _PICKLE and _TORCH_LEGACY in head[:32]):
                return load_torch(stream)
        if head[0] == _PICKLE:
            return load_pickle(path)
        if file_kinds.is_safetensors(head):
            with safe_open(path, framework="pt") as opened:
                own = "wrangan" in (opened.metadata() or {})
            if own:
                raise FileError(path, "a file that wrangan wrote, not another project's checkpoint")
            return load_file(path)
    except SafetensorError as error:
        cut = re.search("incomplete|too ?small|invalid header length", str(error), re.I)
        cause = "the file is truncated" if cut else f"not a readable safetensors file ({error})"
        raise FileError(path, printable(cause)) from error
    except READ_ERRORS as error:
        raise FileError(path, one_line(error)) from error
    raise FileError(path, "not a checkpoint: neither a PyTorch file nor a pickle nor safetensors")
