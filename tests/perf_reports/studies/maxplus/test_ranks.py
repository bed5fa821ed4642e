"""What sharing the samples out costs: counters of real sockets, the model, the picture, and real processes."""

import json
import math
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tropigrad.perf_reports.studies.maxplus import ranks
from tropigrad.perf_reports.studies.maxplus.training import _own_part

HEADERS = 66  # of Ethernet, IPv4 and TCP, a segment


def records():
    of = {"kind": "iterations", "ranks": 2, "stretch": 0, "iterations": 10, "N": 60_000, "p": 1568, "q": 100}
    bytes_of = {"kind": "bytes", "N": 100, "p": 8, "q": 4, "train_A": False, "segments": 4, "seconds": 1e-3}
    return [
        {**of, "method": "alone", "wall_seconds": 6e-3, "processor_seconds": [6e-3, 0.0]},
        {**of, "method": "shared", "wall_seconds": 4e-3, "processor_seconds": [3e-3, 3e-3]},
        {
            **bytes_of,
            "ranks": 2,
            "size": "small",
            "method": "worst sample",
            "socket_bytes": 280,
            "interface_bytes": 585,
        },
        {
            **bytes_of,
            "ranks": 2,
            "size": "small",
            "method": "dense all-reduce",
            "socket_bytes": 9,
            "interface_bytes": 9,
        },
        {"kind": "message", "ranks": 2, "call": "maximum", "bytes": 8, "seconds": [90e-6, 100e-6, 900e-6]},
        {"kind": "message", "ranks": 2, "call": "large all-reduce", "bytes": 1 << 24, "seconds": [1.0, 0.5, 0.25]},
    ]


def test_the_models_constants_are_those_of_the_least_disturbed_samples():
    of = ranks.constants(records())
    assert of == {"seconds_a_sample": 1e-7, "seconds_a_message": 45e-6, "bytes_a_second": (1 << 24) / 0.25}


@pytest.mark.parametrize("samples", ranks.MODEL_SAMPLES)
def test_no_other_number_of_ranks_is_faster_on_a_ring(samples):
    of = ranks.constants(records())
    best = ranks.best_ranks(samples, of)

    def seconds(count):
        work = of["seconds_a_sample"] * samples / count
        return work + 2 * (count - 1) * of["seconds_a_message"]

    assert all(seconds(best) <= seconds(best * factor) for factor in (0.5, 0.9, 1.1, 2))


def test_an_exchange_is_a_ring_or_a_tree_and_then_a_tree():
    assert ranks.exchange_seconds(2, 1.0, tree=False) == ranks.exchange_seconds(2, 1.0, tree=True) == 3
    assert ranks.exchange_seconds(1024, 1.0, tree=False) == 2 * 1023 + 10
    assert ranks.exchange_seconds(1024, 1.0, tree=True) == 30


def test_what_a_socket_sends_is_counted():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            before = ranks.sent_by_sockets()
            one.sendall(b"x" * 1000)
            assert len(other.recv(1000, socket.MSG_WAITALL)) == 1000
            after = ranks.sent_by_sockets()
    assert after[0] - before[0] == 1000
    assert after[1] > before[1]


def test_the_records_are_drawn_again(tmp_path):
    pytest.importorskip("matplotlib")
    lines = "".join(json.dumps(record) + "\n" for record in records())
    (tmp_path / "earlier.jsonl").write_text(lines)
    assert ranks.main([str(tmp_path / "out"), "--records", str(tmp_path / "earlier.jsonl")]) == 0
    assert (tmp_path / "out" / "ranks.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "ranks.jsonl").read_text() == lines
    assert "| 2 | 100, 8, 4 | worst sample | 280 | 585 | 1,000 |" in (tmp_path / "out" / "ranks.md").read_text()


def test_ranks_have_equal_parts_that_leave_nobody_out():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)

    def group_of_three(rank: int) -> Any:
        return SimpleNamespace(rank=lambda: rank, size=lambda: 3)

    parts = [_own_part("training", x, y, group_of_three(rank))[1] for rank in range(3)]
    assert torch.equal(torch.cat(parts), y)
    assert {len(part) for part in parts} == {3, 4}
    with pytest.raises(ValueError, match="2 validation samples for 3 ranks; expected at least one each: fewer ranks"):
        _own_part("validation", x[:2], y[:2], group_of_three(0))


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_an_iteration_of_two_real_ranks_sends_less_than_a_kilobyte_at_any_size():
    found = [record for record in ranks.measured([2], None, 0) if record["kind"] == "bytes"]
    ours = [r["socket_bytes"] + HEADERS * r["segments"] for r in found if ranks._is_ours(r)]
    dense = {r["size"]: r["socket_bytes"] for r in found if r["method"] == "dense all-reduce"}
    assert len(ours) == len(ranks.SIZES)
    assert max(ours) < 1000
    assert math.isclose(max(ours), min(ours), rel_tol=0.05)  # segments may carry two messages
    for name, (_, p, q) in ranks.SIZES.items():
        assert dense[name] > 4 * (p * q + 10 * q)
