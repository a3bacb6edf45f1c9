"""Files that are broken, are something else, or try to run code: one line, nothing runs."""

import contextlib
import io
import pickle
import pickletools
import resource

import numpy as np
import pytest
import torch

from tests.fixtures.checkpoint_files import (
    CASES,
    SOURCE_CANARY,
    global_call,
    module_tree,
    nvidia_modules,
    weights,
    write_case,
    write_nvidia,
)
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.detect import read_checkpoint
from wrangan_cli.engine.checkpoints.restricted_unpickler import READ_ERRORS, RestrictedUnpickler

OPEN = f"{open.__module__}.open"
"""What a pickle calls the built-in `open`: io.open, from Python 3.12 on _io.open."""


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def canary(tmp_path):
    """A path that must not come to be; what runs the code of the tests creates it."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refusal(path):
    with pytest.raises(FileError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_the_canary_would_sing(tmp_path):
    # The same pickles do run code when they are read the usual way.
    pickle.loads(global_call("builtins", "open", str(tmp_path / "canary"), "w")).close()
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("posix", "system", ["touch {canary}"]),
        ("os", "system", ["touch {canary}"]),
        ("builtins", "eval", ["open('{canary}', 'w')"]),
        ("builtins", "open", ["{canary}", "w"]),
        ("builtins", "getattr", []),
        ("subprocess", "Popen", ["touch {canary}"]),
        ("torch", "load", ["{canary}"]),
        ("torch.serialization", "load", ["{canary}"]),
        ("numpy", "load", ["{canary}"]),
        ("wrangan_cli.engine.checkpoints.restricted_unpickler", "read_pickle", []),
        ("collections", "OrderedDict.fromkeys", []),
    ],
)
def test_calls_are_refused_by_name(module, name, arguments, canary, tmp_path):
    path = tmp_path / "f.pkl"
    path.write_bytes(global_call(module, name, *(a.format(canary=canary) for a in arguments)))
    assert refusal(path) == f"refused: the file asks for {module}.{name}, which could run code"


def test_dotted_names_of_allowed_ones_are_refused(tmp_path):
    stream = b"\x80\x04\x8c\x05torch\x8c\x11storage.os.system\x93."
    (tmp_path / "f").write_bytes(stream)
    assert "torch.storage.os.system" in refusal(tmp_path / "f")


def test_call_hidden_among_the_networks(canary, tmp_path):
    case = CASES["ada"]
    trees = {name: module_tree(case, name, tensors) for name, tensors in weights(case).items()}
    trees["D"].state["_modules"]["b4"].state["hook"] = Call(open, str(canary), "w")
    write_nvidia(tmp_path / "f", trees)
    assert OPEN in refusal(tmp_path / "f")


def test_embedded_source_is_not_executed(tmp_path):
    # Every module of this file carries source text that would end the process.
    path = write_case(tmp_path / "f", CASES["ada"])
    assert SOURCE_CANARY.encode() in path.read_bytes()
    assert read_checkpoint(path).discriminator is not None
    path = write_case(tmp_path / "f", CASES["tf"])
    assert SOURCE_CANARY.encode() in path.read_bytes()
    assert read_checkpoint(path).discriminator is not None


@pytest.mark.parametrize("legacy", [True, False])
def test_nested_torch_bytes_are_read_as_data(legacy, canary, tmp_path):
    stream = io.BytesIO()
    torch.save(Call(open, str(canary), "w"), stream, _use_new_zipfile_serialization=not legacy)
    data = Call(torch.storage._load_from_bytes, stream.getvalue())
    with nvidia_modules():
        (tmp_path / "f").write_bytes(pickle.dumps({"G_ema": data}, protocol=3))
    assert refusal(tmp_path / "f") == f"refused: the file asks for {OPEN}, which could run code"


def test_nested_plain_pickle_is_refused(canary, tmp_path):
    data = Call(torch.storage._load_from_bytes, global_call("builtins", "open", str(canary), "w"))
    (tmp_path / "f").write_bytes(pickle.dumps({"G_ema": data}, protocol=3))
    assert refusal(tmp_path / "f")


def test_rosinality_file_with_a_call(canary, tmp_path):
    torch.save({"g_ema": {}, "args": Call(open, str(canary), "w")}, tmp_path / "f.pt")
    assert refusal(tmp_path / "f.pt") == f"refused: the file asks for {OPEN}, which could run code"


@pytest.mark.parametrize("protocol", [3, 5])
def test_object_arrays_are_refused(protocol, canary, tmp_path):
    array = np.array([Call(open, str(canary), "w")], dtype=object)
    (tmp_path / "f").write_bytes(pickle.dumps((array,), protocol=protocol))
    assert refusal(tmp_path / "f").startswith("refused: ")
    array = np.array([None, 1], dtype=object)
    (tmp_path / "f").write_bytes(pickle.dumps((array,), protocol=protocol))
    assert "'O8'" in refusal(tmp_path / "f")


@pytest.mark.parametrize("array", [np.zeros(2, dtype=[("a", "f4")]), np.zeros(1, "V4"), np.zeros(1, "M8[s]")])
def test_arrays_of_no_numbers_are_refused(array, tmp_path):
    (tmp_path / "f").write_bytes(pickle.dumps((array,), protocol=3))
    assert "refused: a NumPy" in refusal(tmp_path / "f")


def test_the_stand_ins_cannot_be_changed(tmp_path):
    # BUILD with a pair (None, {...}) sets attributes, here of an allowed class.
    stream = b"\x80\x03ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsNs\x86b."
    pickletools.dis(stream, out=io.StringIO())
    (tmp_path / "f").write_bytes(stream)
    assert refusal(tmp_path / "f")
    from wrangan_cli.engine.checkpoints.stand_ins import PlainDict

    assert PlainDict.items is dict.items


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    def tensor(offset, size, stride):
        storage = torch.ones(4)._typed_storage()
        return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, None)

    for wrong in (
        tensor(0, (8,), (1,)),
        tensor(3, (2,), (1,)),
        tensor(0, (2,), (-1,)),
        tensor(0, (9**9,), (0,)),
    ):
        (tmp_path / "f").write_bytes(pickle.dumps({"G_ema": wrong}, protocol=3))
        message = refusal(tmp_path / "f")
        assert "one of NVIDIA's" not in message


def edited(tmp_path, edit):
    case = CASES["ada"]
    trees = {name: module_tree(case, name, tensors) for name, tensors in weights(case).items()}
    edit(trees["G_ema"].state["_modules"]["mapping"].state)
    write_nvidia(tmp_path / "f", trees)
    return tmp_path / "f"


def test_child_that_is_no_module(tmp_path):
    path = edited(tmp_path, lambda state: state["_modules"].update(again={"not": "a module"}))
    assert "mapping.again is not a module" in refusal(path)


def test_shared_modules_end(tmp_path):
    # Each module of a chain has the next one twice: 2^30 paths, were they all walked.
    def edit(state):
        for _ in range(30):
            inner = module_tree(CASES["ada"], "G", {"x.w_avg": torch.ones(1)})
            state["_modules"]["one"] = state["_modules"]["two"] = inner
            state = inner.state

    assert "is in the network twice" in refusal(edited(tmp_path, edit))


def test_attributes_of_other_types(tmp_path):
    path = edited(tmp_path, lambda state: state["_modules"]["fc0"].state.update(bias_gain=[1, 2]))
    assert "not readable as a checkpoint" in refusal(path)
    path = edited(tmp_path, lambda state: state["_modules"]["fc0"].state.update(bias_gain="a\nb"))
    assert refusal(path)


def test_names_that_command_the_terminal_are_made_harmless(tmp_path):
    path = edited(tmp_path, lambda state: state["_buffers"].update({"\x1b[2J\nname": torch.ones(1)}))
    assert "?[2J name" in refusal(path)
    (tmp_path / "f").write_bytes(global_call("posix\x1b[2J", "system"))
    assert "posix?[2J.system" in refusal(tmp_path / "f")


@pytest.mark.parametrize("name", ["ada", "tf", "rosinality"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_files(name, share, tmp_path):
    path = write_case(tmp_path / "f", CASES[name])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path) == "the file is truncated"


def test_truncated_legacy_torch_file(tmp_path):
    torch.save({"g_ema": {"a": torch.ones(500)}}, tmp_path / "f", _use_new_zipfile_serialization=False)
    data = (tmp_path / "f").read_bytes()
    for share in (0.2, 0.9):
        (tmp_path / "f").write_bytes(data[: int(len(data) * share)])
        assert refusal(tmp_path / "f")


def test_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "f"
    assert refusal(path) == "no such file"
    assert refusal(tmp_path) == "a folder, not a checkpoint file"
    for content, words in (
        (b"", "the file is empty"),
        (pickle.dumps({"a": 1}), "holds no StyleGAN2 generator; the file has a"),
        (pickle.dumps((1, 2, 3)), "holds no StyleGAN2 generator"),
        (b"PK\x03\x04" + bytes(50), "truncated"),
        (b"\x80\x03" + bytes(range(60, 90)), ""),
    ):
        path.write_bytes(content)
        assert words in refusal(path)
    for data in ([torch.ones(2)], torch.ones(2)):
        torch.save(data, path)
        assert "holds no StyleGAN2 generator; the file has no named entries" in refusal(path)


def test_random_damage_gives_one_clear_line(tmp_path):
    # Bytes are changed at random: either the file still reads, or a FileError comes.
    causes = set()
    data = bytearray(write_case(tmp_path / "f", CASES["ada"]).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = data.copy()
        for place in rng.integers(0, len(data), 20):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "f").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "f")
        except FileError as error:
            causes.add(str(error))
    assert causes
    assert not any("\n" in cause for cause in causes)


@pytest.mark.parametrize("opcode", [b"r", b"j"])
def test_a_large_index_of_the_memo_takes_no_memory(opcode: bytes) -> None:
    """LONG_BINPUT and LONG_BINGET with 2³¹ - 1: the reader in C takes an array of that many entries."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = io.BytesIO(b"\x80\x02]" + opcode + b"\xff\xff\xff\x7f.")
    with contextlib.suppress(*READ_ERRORS):
        assert RestrictedUnpickler(stream).load() == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 100_000  # kB
