"""What an iteration costs: the curves over N, p and q, and the stretches of a run on real data."""

import json

import pytest
import torch

from tropigrad.kernels.runtime import backend
from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.maxplus import costs

TINY = {"N": [(40, 8, 10), (80, 8, 10)], "p": [(40, 8, 10), (40, 16, 10)], "q": [(40, 8, 10), (40, 8, 20)]}


@pytest.fixture(autouse=True)
def _compiler():
    if reason := backend.why_off("cpp", torch.device("cpu")):
        pytest.skip(reason)


def records(path):
    head, *found = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["kind"] == "run"
    return found


def test_the_command_writes_curves_over_three_sizes_and_their_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    measure = costs.measure
    monkeypatch.setattr(costs, "measure", lambda **options: measure(TINY, **options))
    costs.main([str(tmp_path)])
    found = records(tmp_path / "costs.jsonl")
    sizes = [(axis, *size) for axis, points in TINY.items() for size in points]
    for method in ("winners", "trees", "fused dense"):
        assert [(r["axis"], r["N"], r["p"], r["q"]) for r in found if r["method"] == method] == sizes
    assert all(0 < r["least"] <= r["median"] for r in found)
    assert (tmp_path / "iteration-costs.png").read_bytes().startswith(b"\x89PNG")


def test_trees_are_left_out_where_they_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(costs, "TREES_UP_TO", 40 * 8 * 10)
    found = list(costs.measure({"N": TINY["N"]}))
    assert [r["N"] for r in found if r["method"] == "trees"] == [40]
    assert [r["N"] for r in found if r["method"] == "winners"] == [40, 80]


def test_with_mnist_it_measures_stretches_of_a_run_on_real_data(write_mnist, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the digits")
    monkeypatch.setattr(costs, "load", lambda spec: data.load(spec).subset(60, 1))
    out = tmp_path / "out"
    costs.main([str(out), "--mnist", str(write_mnist(tmp_path / "data", images=150))])
    found = records(out / "runs.jsonl")
    assert [path.name for path in out.iterdir()] == ["runs.jsonl"]
    methods = {name: [r for r in found if r["data"].startswith(name)] for name in ("digits", "mnist")}
    assert {r["method"] for r in methods["digits"]} == {"winners", "fused dense", "dense autograd"}
    assert {r["method"] for r in methods["mnist"]} == {"winners", "fused dense"}  # the candidates of 60,000 take 38 GB
    for name, hidden in (("digits", 300), ("mnist", 100)):
        assert {r["hidden"] for r in methods[name]} == {hidden}
        stretches = [tuple(map(int, r["iterations"].split("-"))) for r in methods[name] if r["method"] == "winners"]
        assert [begin for begin, _ in stretches] == list(costs.STRETCHES[: len(stretches)])
        assert all(begin < end for begin, end in stretches)
    assert all(min(r["seconds"]) > 0 and r["processor"] > 0 for r in found)
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_a_run_that_is_done_at_its_start_has_no_cost():
    x = torch.eye(20)
    assert (
        list(costs.measure_run(data.Dataset(x, torch.arange(20) % 2, x, torch.arange(20) % 2, "corners"), 20, False))
        == []
    )


def test_mini_batches_are_measured_by_parts_and_all_methods_take_turns(tmp_path, monkeypatch):
    measure = costs.measure_batches
    monkeypatch.setattr(costs, "measure_batches", lambda: measure(batch=8, p=12, q=10, batches=3, classes=3))
    threads = torch.get_num_threads()
    costs.main([str(tmp_path), "--batches"])
    assert [path.name for path in tmp_path.iterdir()] == ["batches.jsonl"]
    assert torch.get_num_threads() == threads
    rows = records(tmp_path / "batches.jsonl")
    named = [(r["A"], r["method"], r["part"]) for r in rows]
    assert named == [(a, m, part) for a in ("fixed", "trained") for m in costs.OPTIMIZERS for part in costs.PARTS]
    assert all(len(r["seconds"]) == 3 and 0 < r["least"] <= r["median"] for r in rows)
    assert all(r["peak_bytes"] is None or r["peak_bytes"] >= 0 for r in rows)


def test_each_share_is_measured_in_each_stretch():
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    measured = list(costs.measure_shares(data.Dataset(x, y, x, y, "points"), 12, [1.0, 0.1], bounds=(0, 5, 10)))
    assert [(r["share"], r["iterations"]) for r in measured] == [
        (share, stretch) for stretch in ("0-5", "5-10") for share in (None, 1.0, 0.1)
    ]
    assert all(len(r["seconds"]) == 1 and r["median"] > 0 for r in measured)
    assert [r["times_worst_sample"] for r in measured if r["share"] is None] == [1.0, 1.0]


def test_shares_need_real_data(capsys):
    with pytest.raises(SystemExit):
        costs.main(["--shares", "0.1"])
    assert "--shares needs --mnist DIR" in capsys.readouterr().err
