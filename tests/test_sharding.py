"""`invert` and `evaluate` in two processes: the results of one, each line once, one exit code."""

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY, random_generator_network, write_photo
from tests.shard_case import load_projection, run_command
from wrangan_cli.engine.base.distributed import gather_shards, local_shard
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics import inception
from wrangan_cli.engine.metrics.samples import generated_images
from wrangan_cli.engine.models.codes import Code, load_code, save_code
from wrangan_cli.engine.models.folder import Model, save_model

ROOT = Path(__file__).parents[1]
QUICK = ["--init", "mean", "--steps", "3", "--perceptual-weight", "0", "--device", "cpu", "--batch", "2"]
needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="package torch-fidelity is not installed"
)


@dataclass(frozen=True)
class Outcomes:
    """What command lines gave alone and in each of two processes, by name; `folder` has their files."""

    folder: Path
    alone: dict[str, Any]
    ranks: list[dict[str, Any]]

    def codes(self, name: str) -> tuple[int, list[int]]:
        """Exit codes: alone, and of both processes."""
        return self.alone[name]["code"], [rank[name]["code"] for rank in self.ranks]

    def lines(self, name: str, stream: str) -> tuple[list[str], list[str]]:
        """Lines alone, and of both processes together."""
        return self.alone[name][stream], [line for rank in self.ranks for line in rank[name][stream]]


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def write_files(folder: Path) -> None:
    """A model; photographs, good and bad; codes with photographs of their own; real images."""
    save_model(folder / "tiny", random_generator_network(), perceptual="st-lpips-alex")
    for seed in range(5):
        write_photo(folder / "photos" / f"{seed}.png", seed=seed)
    write_photo(folder / "photos" / "1.jpg", seed=1)  # 1.png would write the same code
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    model = load_model(str(folder / "tiny"))
    for index, stem in enumerate(("a", "b", "c", "d", "lonely")):
        torch.manual_seed(index)
        info = {"model": model.name, "model_sha256": model.sha256}
        save_code(folder / "codes" / f"{stem}.st", Code(torch.randn(TINY.style_dim) * 0.3, info=info))
    for stem in "abc":
        write_photo(folder / "pairs" / f"{stem}.png", seed=ord(stem))
    (folder / "pairs" / "d.png").write_bytes(b"no image")
    for seed in range(9):
        write_photo(folder / "real" / f"{seed}.png", seed=seed)


def command_lines(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Name → arguments and stdin."""
    model = ["--model", folder / "tiny"]
    codes = ["--out", folder / "out-{ranks}", *model, *QUICK, "--json"]
    pairs = ["--codes", folder / "codes", "--photos", folder / "pairs", *model, "--metric", "mse"]
    samples = [
        "evaluate",
        *model,
        "--reference",
        folder / "real",
        "--epsilon",
        1,
        "--json",
        "--metric",
        "fid",
    ]
    return {
        "invert": (["invert", *codes], f"{folder / 'photos'}\n"),
        "again": (["invert", folder / "photos", *codes], ""),
        "no model": (["invert", folder / "pairs", "--model", folder / "gone", *codes[:2]], ""),
        "no codes": (["evaluate", "--codes", folder, "--photos", folder / "pairs", *model], ""),
        "pairs": (["evaluate", *pairs, "--json", "--csv", folder / "{ranks}.csv"], ""),
        "samples": ([*samples, "--metric", "kid", "--metric", "recall", "--samples", 13, "--batch", 4], ""),
        "few samples": ([*samples, "--samples", 1], ""),
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All command lines, in this process and in two with the environment that torchrun gives."""
    folder = tmp_path_factory.mktemp("sharding")
    write_files(folder)
    lines = command_lines(folder)
    plan = {
        name: {"arguments": list(map(str, arguments)), "stdin": stdin, "port": port}
        for (name, (arguments, stdin)), port in zip(lines.items(), free_ports(len(lines)), strict=True)
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    told = os.environ | {"OMP_NUM_THREADS": "1", "WRANGAN_CACHE": str(folder / "cache-2")}
    command = [sys.executable, "-m", "tests.shard_case", str(folder / "plan.json"), str(folder)]
    both = subprocess.Popen(command, cwd=ROOT, env=told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WRANGAN_CACHE", str(folder / "cache-1"))
        patch.setattr(inception, "load_inception", load_projection)
        alone = {name: run_command(case["arguments"], case["stdin"]) for name, case in plan.items()}  # type: ignore[arg-type]
    assert both.wait() == 0
    return Outcomes(folder, alone, [json.loads((folder / f"{r}.json").read_text()) for r in range(2)])


def test_shares_come_back_in_order_in_one_process() -> None:
    assert list(local_shard(range(5))) == gather_shards(list(range(5))) == list(range(5))


def test_codes_are_those_of_one_process(outcomes: Outcomes) -> None:
    assert outcomes.codes("invert") == (1, [1, 1])  # also the process that had no failure
    alone, both = outcomes.lines("invert", "stdout")
    records = [json.loads(line) for line in both]
    assert sorted(Path(record["path"]).name for record in records) == [f"{i}.st" for i in range(5)]
    assert not any(record["skipped"] for record in records)
    assert len(alone) == 5
    assert all(len(rank["invert"]["stdout"]) >= 2 for rank in outcomes.ranks)
    for index in range(5):
        one, two = (load_code(outcomes.folder / f"out-{ranks}" / f"{index}.st") for ranks in (1, 2))
        assert one.info["source"] == two.info["source"]
        torch.testing.assert_close(two.w, one.w, rtol=0, atol=1e-6)
        assert one.epsilon.keys() == two.epsilon.keys()
        for name, value in one.epsilon.items():
            torch.testing.assert_close(two.epsilon[name], value, rtol=0, atol=1e-6)


def test_failures_of_an_inversion_are_said_once(outcomes: Outcomes) -> None:
    alone, both = outcomes.lines("invert", "stderr")
    assert sorted(both) == sorted(line.replace("out-1", "out-2") for line in alone)
    assert len(both) == 2
    assert "would write" in outcomes.ranks[0]["invert"]["stderr"][0]  # over the whole list


def test_a_second_run_skips_what_is_done(outcomes: Outcomes) -> None:
    assert outcomes.codes("again") == (1, [1, 1])
    for lines in outcomes.lines("again", "stdout"):
        assert [json.loads(line)["skipped"] for line in lines] == [True] * 5


def test_what_is_wrong_for_all_is_said_once(outcomes: Outcomes) -> None:
    assert outcomes.codes("no model") == (2, [2, 2])
    assert outcomes.codes("no codes") == (1, [1, 1])
    for name, words in (("no model", "neither a folder nor a bundled model"), ("no codes", "no codes (.st)")):
        alone, both = outcomes.lines(name, "stderr")
        assert both == alone
        assert len(both) == 1
        assert words in both[0]


def test_pairs_are_compared_in_shares(outcomes: Outcomes) -> None:
    assert outcomes.codes("pairs") == (1, [1, 1])
    alone, both = outcomes.lines("pairs", "stderr")
    assert both == alone
    assert len(both) == 2
    tables = [list(csv.reader((outcomes.folder / f"{ranks}.csv").open())) for ranks in (1, 2)]
    assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]
    # Another batch adds in another order: float noise.
    values = [[float(row[2]) for row in table[1:]] for table in tables]
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    alone, both = outcomes.lines("pairs", "stdout")
    assert len(both) == 2
    first, second = json.loads(alone[0]), json.loads(both[0])
    for name in ("value", "interval"):
        assert second.pop(name) == pytest.approx(first.pop(name), rel=1e-5)
    assert second == first
    assert first["count"] == 3


@needs_fidelity
def test_samples_are_those_of_one_process(outcomes: Outcomes) -> None:
    assert outcomes.codes("samples") == (0, [0, 0]), outcomes.lines("samples", "stderr")
    alone, both = outcomes.lines("samples", "stdout")
    assert len(both) == len(alone) == 3
    for one, two in zip(alone, both, strict=True):
        expected, got = json.loads(one), json.loads(two)
        for name in ("value", "standard_error"):
            numbers = expected.pop(name), got.pop(name)
            if numbers != (None, None):  # FID has no standard error
                assert numbers[1] == pytest.approx(numbers[0], rel=1e-3, abs=1e-6)
        assert got == expected
    # The features of the reference are those of one process, in its order, and kept once.
    kept = [list((outcomes.folder / f"cache-{ranks}").glob("inception-*")) for ranks in (1, 2)]
    assert [file.name for file in kept[0]] == [file.name for file in kept[1]]
    features = [load_file(file)["features"] for (file,) in kept]
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=1e-5)


@needs_fidelity
def test_fewer_samples_than_processes(outcomes: Outcomes) -> None:
    assert outcomes.codes("few samples") == (1, [1, 1])
    alone, both = outcomes.lines("few samples", "stderr")
    assert both == alone == ["wrangan: fid: needs 2 images or more in each set, one has 1"]


def test_an_image_is_the_same_in_any_share(tiny_model: Model) -> None:
    whole = torch.cat(list(generated_images(tiny_model, 7, seed=3, epsilon=1.0)))
    share = torch.cat(list(generated_images(tiny_model, 7, seed=3, batch=2, epsilon=1.0, indices=[1, 4, 6])))
    torch.testing.assert_close(share, whole[[1, 4, 6]], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torchrun_itself(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "wrangan_cli", "invert", "-", "--out", str(tmp_path / "codes")]
    command += ["--model", str(tiny_folder), *QUICK]
    done = subprocess.run(
        command,
        input=f"{photos}\n",
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [str(tmp_path / "codes" / f"{stem}.st") for stem in "abc"]
