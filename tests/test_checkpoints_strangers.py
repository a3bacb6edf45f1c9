"""What else pickles hold becomes plain data; what runs code is refused, and does not run."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import os
import pathlib
import pickle
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch

from tests.fixtures.checkpoint_files import CASES, weights
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.detect import read_checkpoint, read_data
from wrangan_cli.engine.checkpoints.numpy_stand_ins import StoredArray


def refusal(path):
    with pytest.raises(FileError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


# --- Plain data ------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Mode(str, enum.Enum):  # noqa: UP042 - as older files have it
    FAST = "fast"


class Bits(enum.Flag):
    ONE = 1
    TWO = 2


class EasyDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self[name] = value


class AttrDict(dict):
    """Its attributes are its items."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Settings:
    def __init__(self):
        self.rate, self.inner = 0.1, types.SimpleNamespace(depth=2)


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 5


class Listed(list):
    pass


TIME = datetime.datetime(2021, 3, 4, 5, 6, 7, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
PLAIN = {
    "float64": (np.float64(1.5), 1.5),
    "float32": (np.float32(0.25), 0.25),
    "int64": (np.int64(-7), -7),
    "big endian": (np.dtype(">i4").type(9), 9),
    "bool_": (np.bool_(True), True),
    "complex": (np.complex64(1 + 2j), 1 + 2j),
    "str_": (np.str_("text"), "text"),
    "bytes_": (np.bytes_(b"text"), b"text"),
    "posix path": (pathlib.PurePosixPath("/data/run/net.pt"), "/data/run/net.pt"),
    "relative path": (pathlib.PosixPath("run/net.pt"), "run/net.pt"),
    "windows path": (pathlib.PureWindowsPath("C:\\data\\net.pt"), "C:\\data\\net.pt"),
    "defaultdict": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "defaultdict of dicts": (collections.defaultdict(dict, a={"b": 1}), {"a": {"b": 1}}),
    "OrderedDict": (collections.OrderedDict(a=1), {"a": 1}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "deque": (collections.deque([1, 2], maxlen=3), [1, 2]),
    "Namespace": (argparse.Namespace(lr=0.1, n=[1]), {"lr": 0.1, "n": [1]}),
    "SimpleNamespace": (types.SimpleNamespace(a=1), {"a": 1}),
    "datetime": (TIME, TIME),
    "date": (TIME.date(), TIME.date()),
    "time": (TIME.time(), TIME.time()),
    "timedelta": (datetime.timedelta(days=2), datetime.timedelta(days=2)),
    "decimal": (decimal.Decimal("1.50"), decimal.Decimal("1.50")),
    "fraction": (fractions.Fraction(1, 3), fractions.Fraction(1, 3)),
    "uuid": (uuid.UUID(int=5), {"int": 5}),
    "enum": (Colour.RED, 1),
    "enum of text": (Mode.FAST, "fast"),
    "flag": (Bits.ONE | Bits.TWO, 3),
    "enums as keys": ({Colour.RED: 1}, {1: 1}),
    "size": (torch.Size([2, 3]), (2, 3)),
    "device": (torch.device("cuda:1"), "cuda:1"),
    "dtype": (torch.bfloat16, torch.bfloat16),
    "easydict": (EasyDict(a=EasyDict(b=2)), {"a": {"b": 2}}),
    "dict of attributes": (AttrDict(a=1), {"a": 1}),
    "object": (Settings(), {"rate": 0.1, "inner": {"depth": 2}}),
    "slots": (Slots(), {"a": 5}),
    "list": (Listed([3, 4]), {0: 3, 1: 4}),
    "set": ({1, 2}, {1, 2}),
    "frozenset": (frozenset([1]), frozenset([1])),
    "bytes": ((b"a", b"", bytearray(b"b")), (b"a", b"", b"b")),
    "range": (range(2, 9, 3), range(2, 9, 3)),
    "types": (1 + 2j, 1 + 2j),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_data(name, tmp_path):
    value, expected = PLAIN[name]
    for protocol in range(2, 6):
        (tmp_path / "f").write_bytes(pickle.dumps({"it": value}, protocol=protocol))
        found = read_data(tmp_path / "f")["it"]
        assert found == expected
        assert not isinstance(found, np.generic | pathlib.PurePath | enum.Enum | collections.defaultdict)
        for legacy in (False, True):
            torch.save({"it": value}, tmp_path / "f.pt", pickle_protocol=protocol,
                       _use_new_zipfile_serialization=not legacy)  # fmt: skip
            assert read_data(tmp_path / "f.pt")["it"] == expected


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_scalars_of_both_numpys(package, tmp_path):
    for protocol in (2, 3, 4):
        data = pickle.dumps(np.float64(1.5), protocol=protocol)
        written = next(name for name in ("numpy.core", "numpy._core") if name.encode() in data)
        if protocol < 4:
            data = data.replace(f"c{written}.".encode(), f"c{package}.".encode())
        elif written != package:
            continue
        (tmp_path / "f").write_bytes(data)
        assert read_data(tmp_path / "f") == 1.5


def test_arrays_and_types_of_numpy(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    data = {
        "array": array,
        "fortran": np.asfortranarray(array),
        "text": np.array(["a", "bc"]),
        "dtype": np.float32,
    }
    for protocol in range(2, 6):
        (tmp_path / "f").write_bytes(pickle.dumps(data, protocol=protocol))
        found = read_data(tmp_path / "f")
        assert isinstance(found["array"], StoredArray)
        np.testing.assert_array_equal(found["array"].value, array)
        np.testing.assert_array_equal(found["fortran"].value, array)
        assert found["text"].value.tolist() == ["a", "bc"]


class AnyNode:
    def __init__(self, value):
        self._val, self._metadata = value, {}


class DictConfig:
    def __init__(self, content):
        self._content, self._metadata, self._parent = content, {}, None


def test_omegaconf(tmp_path, monkeypatch):
    """As its classes store themselves: values in nodes, nodes in `_content`."""
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig, module.AnyNode = DictConfig, AnyNode
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    for kind in (DictConfig, AnyNode):
        monkeypatch.setattr(kind, "__module__", "omegaconf.dictconfig")
    contents = {"g_ema": weights(CASES["rosinality"])["G_ema"]}
    for arch, fits in (("stylegan2", True), ("swagan", False)):
        torch.save(contents | {"args": DictConfig({"arch": AnyNode(arch)})}, tmp_path / "f.pt")
        if fits:
            assert read_checkpoint(tmp_path / "f.pt")
        else:
            assert "its architecture is 'swagan'" in refusal(tmp_path / "f.pt")


def test_a_checkpoint_with_all_of_it_converts(tmp_path):
    drawn = weights(CASES["rosinality"])["G_ema"]
    torch.save({"g_ema": drawn}, tmp_path / "plain.pt")
    torch.save({name: value for name, (value, _) in PLAIN.items()} | {"g_ema": drawn}, tmp_path / "f.pt")
    one, other = read_checkpoint(tmp_path / "plain.pt"), read_checkpoint(tmp_path / "f.pt")
    assert all(torch.equal(one.generator[name], tensor) for name, tensor in other.generator.items())


# --- Hostile files ---------------------------------------------------------------------


class Runs:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class SetsState:
    """Its class runs code when its state is set."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        open(state["path"], "w").close()


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def hostile(canary):
    touch = f"open({str(canary)!r}, 'w')"
    system = Runs(os.system, f"touch {canary}")
    return {
        "system": (system, "posix.system"),
        "eval": (Runs(eval, touch), "builtins.eval"),
        "in a dict of attributes": (EasyDict(a=[EasyDict(b=system)]), "posix.system"),
        "in a namespace": (argparse.Namespace(a=system), "posix.system"),
        "as an enum's value": (Runs(Colour, system), "posix.system"),
        "as a factory": (Runs(collections.defaultdict, Runs(eval, touch)), "builtins.eval"),
        "in a tensor": (Runs(torch._utils._rebuild_tensor_v2, system, 0, (1,), (1,)), "posix.system"),
        "in an array": (Runs(np.dtype, system), "posix.system"),
        "by exec in map": (Runs(map, exec, [touch]), "builtins.map"),
        "of a small letter": (Runs(read_data, "f"), "wrangan_cli.engine.checkpoints.detect.read_data"),
    }  # fmt: skip


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize("name", sorted(hostile("x")))
def test_hostile_pickles(name, torch_file, canary, tmp_path):
    value, asked = hostile(canary)[name]
    data = {"g_ema": weights(CASES["rosinality"])["G_ema"], "more": value}
    path = tmp_path / "f.pt"
    for protocol in (2, 4):
        if torch_file:
            torch.save(data, path, pickle_protocol=protocol)
        else:
            path.write_bytes(pickle.dumps(data, protocol=protocol))
        assert refusal(path) == f"refused: the file asks for {asked}, which could run code"


def test_states_are_not_set_by_code_of_a_class(canary, tmp_path):
    """The class of the file is not looked for, though it is one of this very process."""
    data = pickle.dumps({"it": SetsState(str(canary))})
    (tmp_path / "f").write_bytes(data)
    assert read_data(tmp_path / "f")["it"] == {"path": str(canary)}
    other = tmp_path / "other"
    pickle.loads(pickle.dumps(SetsState(str(other))))
    assert other.exists()  # where it is looked for it does run


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        # getattr(a module's class, "system"), getattr of a dict's method, calls of what came out.
        (b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x08\x00\x00\x00fromkeystR.", "builtins.getattr"),
        (b"cbuiltins\ngetattr\n(}X\x06\x00\x00\x00updatetR.", "builtins.getattr"),
        (b"(S'x'\nibuiltins\neval\n.", "builtins.eval"),
        (b"(cbuiltins\neval\nS'x'\no.", "builtins.eval"),
        (b"cbuiltins\nlist\n)R.", "builtins.list"),
        (b"c__builtin__\neval\n(S'x'\ntR.", "builtins.eval"),
        (b"cdecimal\nDecimal\nN}X\x07\x00\x00\x00__new__Ns\x86b.", ""),
        (b"cdatetime\ndatetime\nN}X\x07\x00\x00\x00__new__Ns\x86b.", ""),
        (b"cany\nModel\nN}X\x06\x00\x00\x00updateNs\x86b.", ""),
        (b"cany\nModel\n)\x81N}X\x06\x00\x00\x00updateNs\x86b.", "no StyleGAN2 generator"),
        (b"\x82\x01.", "not readable as a checkpoint"),
        (b"cfractions\nFraction\n(X\x0b\x00\x00\x001e999999999tR.", ""),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "_codecs.encode"),
        (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "bytes of an unknown form"),
        (b"cbuiltins\nset\n(cbuiltins\nrange\n(J\xff\xff\xff\x7ftRtR.", "a range of too many numbers"),
    ],
)  # fmt: skip
def test_pickles_written_by_hand(stream, words, tmp_path):
    (tmp_path / "f").write_bytes(b"\x80\x04" + stream)
    assert words in refusal(tmp_path / "f")
    assert dict.update is not None
    assert decimal.Decimal("1") == 1


def test_a_program_among_torchs_files(canary, tmp_path):
    """A zip as of torch whose pickle is not torch's."""
    torch.save({"a": 1}, tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = pickle.dumps(Runs(os.system, f"touch {canary}"), protocol=2)
    with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert "posix.system" in refusal(tmp_path / "f.pt")


def test_dicts_within_themselves_end(tmp_path):
    inner = {"a": 1}
    inner["again"] = inner
    (tmp_path / "f").write_bytes(pickle.dumps(inner))
    assert "holds no StyleGAN2 generator" in refusal(tmp_path / "f")
    shared = {"x": 1}
    for _ in range(40):
        shared = {"one": shared, "two": shared}
    (tmp_path / "f").write_bytes(pickle.dumps(shared))
    assert "has more than 100,000 entries" in refusal(tmp_path / "f")
