"""Two processes train as one does; a killed one comes back and the run goes on."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import CASES, collectives, run_case
from tests.conftest import write_photo
from wrangan_cli.engine.base import distributed
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.training.shards import Shards
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes got from tests/cases.py."""
    out = tmp_path_factory.mktemp("ranks")
    told = os.environ | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tests.cases", str(out)], cwd=ROOT, env=told, check=True)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


alone_in = functools.cache(run_case)
"""A case in this process, once for all tests."""


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_with_half_the_batch_each_are_one_process(
    name: str, two_ranks: list[dict[str, Any]]
) -> None:
    alone = alone_in(name)
    for result in (rank[name] for rank in two_ranks):
        for one, two in zip(alone["reports"], result["reports"], strict=True):
            assert two == pytest.approx(one, rel=1e-9, abs=1e-11)
        for part in ("gradients", "weights", "average"):
            assert alone[part].keys() == result[part].keys()
            for key, value in alone[part].items():
                torch.testing.assert_close(
                    result[part][key], value, rtol=1e-6, atol=1e-9, msg=f"{part} {key}"
                )


@pytest.mark.parametrize("name", CASES)
def test_every_rank_ends_with_the_same_bits_and_streams(name: str, two_ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[name] for rank in two_ranks)
    assert one["reports"] == two["reports"]
    for key, value in one["weights"].items():
        assert torch.equal(value, two["weights"][key]), key
    if torch.is_tensor(one["streams"]):
        assert torch.equal(one["streams"], two["streams"])
    else:
        assert all(torch.equal(one["streams"][s], two["streams"][s]) for s in ("host", "local"))


def test_micro_batches_are_one_batch() -> None:
    whole, cut = alone_in("augmented"), alone_in("accumulated")
    for one, two in zip(whole["reports"], cut["reports"], strict=True):
        assert two == pytest.approx(one, rel=1e-9, abs=1e-11)
    for part in ("gradients", "weights", "average"):
        for key, value in whole[part].items():
            torch.testing.assert_close(cut[part][key], value, rtol=1e-6, atol=1e-9, msg=f"{part} {key}")


def test_collectives(two_ranks: list[dict[str, Any]]) -> None:
    for rank, got in enumerate(result["collectives"] for result in two_ranks):
        assert (got["rank"], got["world"], got["main"]) == (rank, 2, rank == 0)
        assert got["mean"] == [0.5, 10.0]
        assert got["any"] == [True, False]
        assert got["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert got["broadcast"] == "of 0"
        assert got["share"] == [[0, 2, 4], [1, 3]][rank]
        assert got["gradient"] == [1.5, 3.0, 4.5]
        # The sum of both losses is mean · 1 + mean · 2, of which each x has a half.
        assert got["through"] == [1.5]


def test_kid_is_the_same_for_any_number_of_processes(two_ranks: list[dict[str, Any]]) -> None:
    alone = collectives()["kid"]
    assert [rank["collectives"]["kid"] for rank in two_ranks] == pytest.approx([alone, alone], rel=1e-6)


def test_alone_nothing_happens() -> None:
    x = torch.randn(3)
    with distributed.process_group():
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.mean_over_ranks(x) is x
        assert distributed.gather_objects(3) == [3]
        assert distributed.broadcast(3) == 3
        assert list(distributed.local_shard([1, 2, 3])) == [1, 2, 3]
        assert distributed.any_rank(True)
        distributed.barrier()


def test_parts_keep_the_groups_of_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image i is in group i mod 4 of a batch of 16; within a part of 8, in group j mod 2."""
    monkeypatch.setattr("wrangan_cli.engine.training.shards.world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr("wrangan_cli.engine.training.shards.rank", lambda rank=rank: rank)
        (rows,) = Shards(16, 4).parts
        seen += rows.tolist()
        for group in range(2):
            assert len({row % 4 for row in rows.tolist()[group::2]}) == 1
    assert sorted(seen) == list(range(16))


@pytest.mark.parametrize(
    ("batch", "group", "accumulate", "words"),
    [
        (6, 4, 1, "batch 6: expected a multiple of 4"),
        (12, 4, 2, "multiple of 8, since D judges 4 images together in each of 2 parts"),
        (8, None, 2, "compares all images"),
        (4, 1, 4, "multiple of 8"),
    ],
)
def test_batches_that_cannot_be_cut(batch: int, group: int | None, accumulate: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Shards(batch, group, accumulate)


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_goes_on(tmp_path: Path) -> None:
    for seed in range(8):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    shape = "--resolution 16 --channels 8,8,8 --style-dim 8 --mapping-layers 2 --device cpu"
    lengths = "--images 160 --batch 8 --snapshot-images 32 --keep-snapshots 20"
    out = tmp_path / "run"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "1", "-m", "tests.killed_rank", "train", "generator"),
            *("--data", str(tmp_path / "faces"), "--out", str(out), *shape.split(), *lengths.split()),
        ],
        cwd=ROOT,
        env=os.environ | {"WRANGAN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # One process speaks; the snapshot of image 64 is the last before the death in step 10, at image 72.
    assert result.stdout.splitlines() == [str(out / "model")]
    assert result.stderr.count("8 images of 16 px") == 2
    steps = [load_snapshot(path)["images"] for path in list_snapshots(out)]
    assert steps[:2] == [32, 64]
    assert steps[-1] == 160
    assert {path.name for path in out.glob("grid-*")} >= {"grid-0000000064.png", "grid-0000000160.png"}
    assert json.loads((out / "settings.json").read_text())["settings"]["batch"] == 8
