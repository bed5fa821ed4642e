"""The report end to end on a tiny op and a made-up study: what is kept, what is refused, how it ends."""

import json

import pytest
import torch

from tropigrad.kernels.contract.spec import Contender
from tropigrad.perf_reports import records, report, tune
from tropigrad.perf_reports.data import DataError
from tropigrad.perf_reports.measuring import benchmark, ceilings, startup
from tropigrad.perf_reports.measuring.memory import Memory
from tropigrad.perf_reports.studies import Study

from .conftest import calls, ceiling, product, summary, training


def study(data_dir, quick, seed, progress):
    for i in range(5):
        progress(i, 5, "training")
        yield training("sparse backward", i, 0.001 * i, 4.0 - i, 0.9)
        yield training("dense autograd", i, 0.1 * i, 4.0 - i, 0.9)
    yield summary("sparse backward", "ours", 0.001)
    yield summary("dense autograd", "dense", 0.1)


def off_by(amount):
    return lambda a, b: lambda: (product(a, b) + amount,)


def fails(a, b):
    raise RuntimeError("no such\nluck")


OURS = Contender("ours", "ours", calls)
DEFINITION = Contender("definition", "dense", calls)


@pytest.fixture
def go(monkeypatch, tmp_path, tiny_spec):
    """`go(*contenders, **options)`: a report of the tiny op by these contenders and of the made-up study."""

    def make(*contenders, study=study, workloads=None, **options):
        monkeypatch.setattr(report, "REGISTRY", {"product": tiny_spec(*contenders, workloads=workloads)})
        monkeypatch.setattr(report, "STUDIES", {"maxplus": Study("maxplus", study, "Worst-sample loss")})
        monkeypatch.setattr(report, "_KERNEL_BUDGET_S", {False: 0.2, True: 0.1})
        return report.run(tmp_path / "out", **{"quick": True, **options})

    make.kept = kept = []

    def roofs(quick, progress):
        yield ceiling("add_max", 1, 50.0)
        yield ceiling("memory", 1, 20.0, "GB/s")

    monkeypatch.setattr(ceilings, "measure", roofs)
    # what `explain` goes by on this machine is not to be made up
    monkeypatch.setattr(tune, "keep_ceilings", lambda records, device, by: kept.append((records, device, by)))
    monkeypatch.setattr(startup, "measure", lambda quick, progress: iter([startup._record("import", [0.1])]))
    # what collects garbage at each call takes the time of these tests; measuring/test_memory.py holds it
    monkeypatch.setattr(benchmark, "peak_memory", lambda call: (call(), Memory(2048, 1024, "made up")))
    interleaved = benchmark.interleaved
    monkeypatch.setattr(benchmark, "interleaved", lambda *a, **k: interleaved(*a, **k, sample_s=1e-4, max_rounds=8))
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    monkeypatch.delenv("TROPIGRAD_BACKEND", raising=False)
    return make


def of_kind(outcome, kind):
    return [record for record in outcome.records if record["kind"] == kind]


def test_the_roofs_are_kept_for_explain(go):
    outcome = go()
    ((records, device, by),) = go.kept
    assert [(r["name"], r["value"]) for r in records] == [("add_max", 50.0), ("memory", 20.0)]
    assert [r["value"] for r in of_kind(outcome, "ceiling")] == [50.0, 20.0]
    assert (device, by) == (torch.device("cpu"), "tropigrad report")


def test_a_report_that_measures_no_roof_keeps_none(go):
    go(only=["maxplus"])
    assert go.kept == []


def test_a_report_leaves_a_page_plots_and_all_records(go, tmp_path):
    stages = []
    outcome = go(progress=lambda stage, done, total, what: stages.append(stage))
    assert outcome.exit_code == 0
    assert outcome.page == tmp_path / "out" / "index.html"
    names = {path.name for path in outcome.page.parent.iterdir()}
    assert names >= {"index.html", "results.jsonl", "roofline.png", "speedups.svg", "training-maxplus.png"}
    assert records.read(outcome.page.with_name("results.jsonl")) == outcome.records
    kinds = [record["kind"] for record in outcome.records]
    assert kinds[0] == "run"
    assert kinds[-1] == "run_end"
    assert {"ceiling", "startup", "training", "training_summary", "gate", "timing"} <= {*kinds}
    assert list(dict.fromkeys(stages)) == ["training", "kernels"]


def test_every_contender_is_timed_at_every_shape_with_raw_samples_and_a_ratio(go, words_alone):
    timings = of_kind(go(OURS, DEFINITION, Contender("scale", "scale", off_by(1))), "timing")
    assert len(timings) == 2 * 3
    for record in timings:
        assert len(record["seconds"]) >= 3
        assert record["median"]["low"] <= record["median"]["value"] <= record["median"]["high"]
        assert (record["ratio"] is not None) == (record["role"] == "dense")
    assert [record["backend"] for record in timings] == ["torch", None, None] * 2


def test_results_that_differ_from_the_definition_fail_the_report_and_get_no_speedup(go, words_alone):
    outcome = go(Contender("ours", "ours", off_by(1e-6)), DEFINITION, Contender("peer", "peer", calls))
    assert outcome.exit_code == 1
    assert len(outcome.disagreements) == 2
    assert all(record["ratio"] is None for record in of_kind(outcome, "timing"))
    assert "did not agree" in outcome.page.read_text()
    assert any("OURS DIFFER" in line for line in report.summary(outcome))


def test_a_rival_that_differs_gets_no_speedup_but_is_not_our_failure(go, words_alone):
    outcome = go(OURS, DEFINITION, Contender("peer", "peer", off_by(1)))
    assert outcome.exit_code == 0
    ratios = {record["contender"]: record["ratio"] for record in of_kind(outcome, "timing")}
    assert ratios["definition"] is not None
    assert ratios["peer"] is None


@pytest.mark.parametrize(
    ("contender", "reason"),
    [
        (Contender("absent", "peer", calls, requires="no_such_module"), "no_such_module is not installed"),
        (Contender("slow", "dense", calls, limit=10), "above 10"),
        (Contender("compiled", "compiled", calls), "compiling takes longer"),
        (Contender("broken", "peer", fails), "RuntimeError: no such"),
    ],
    ids=lambda value: value.name if isinstance(value, Contender) else "",
)
def test_what_cannot_be_measured_is_left_out_by_name_with_its_reason(go, contender, reason, words_alone):
    outcome = go(OURS, DEFINITION, contender)
    left_out = of_kind(outcome, "left_out")
    assert len(left_out) == 2
    assert all(contender.name in record["what"] and reason in record["reason"] for record in left_out)
    assert outcome.exit_code == 0
    assert reason in outcome.page.read_text()


def test_ours_failing_fails_the_report(go, words_alone):
    outcome = go(Contender("ours", "ours", fails), DEFINITION)
    assert outcome.exit_code == 1
    assert of_kind(outcome, "timing") == []
    assert "RuntimeError: no such" in outcome.page.read_text()


def test_an_interruption_keeps_what_was_measured(go):
    def interrupted(data_dir, quick, seed, progress):
        yield training("sparse backward", 0, 0.1, 4.0, 0.9)
        yield training("sparse backward", 1, 0.2, 3.0, 0.9)
        raise KeyboardInterrupt

    outcome = go(study=interrupted)
    assert outcome.exit_code == 130
    assert [record["kind"] for record in records.read(outcome.page.with_name("results.jsonl"))] == [
        "run",
        "ceiling",
        "ceiling",
        "startup",
        "training",
        "training",
        "run_end",
    ]
    assert "Interrupted." in outcome.page.read_text()
    assert "training-maxplus.png" in {path.name for path in outcome.page.parent.iterdir()}
    assert len(report.summary(outcome)) == 6


def test_an_unforeseen_error_keeps_what_was_measured_and_goes_its_way(go, tmp_path, words_alone):
    def broken(data_dir, quick, seed, progress):
        yield training("sparse backward", 0, 0.1, 4.0, 0.9)
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        go(study=broken)
    assert "ZeroDivisionError: a bug" in (tmp_path / "out" / "index.html").read_text()


def test_the_summary_has_six_lines_and_ends_with_the_page(go, words_alone):
    outcome = go()
    lines = report.summary(outcome)
    assert [line.split()[0] for line in lines] == ["machine", "training", "dense", "rivals", "results", "page"]
    assert lines[-1].endswith(str(outcome.page))
    assert "sparse backward 1.00 ms an iteration, 95.0 % right" in lines[1]
    assert "2 of 2 comparisons agree" in lines[4]


def test_the_summary_for_machines_is_json(go, words_alone):
    found = json.loads(json.dumps(report.as_json(go())))
    assert {group["contender"] for group in found["speedups"]} == {"definition", "dense autograd"}
    assert found["interrupted"] is False


@pytest.mark.parametrize(
    ("only", "kinds"),
    [
        (["maxplus"], {"run", "training", "training_summary", "run_end"}),
        (["forward"], {"run", "ceiling", "startup", "memory", "gate", "timing", "run_end"}),
        (["product"], {"run", "ceiling", "startup", "memory", "gate", "timing", "run_end"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_only_picks_by_name(go, only, kinds, words_alone):
    outcome = go(only=only)
    assert {record["kind"] for record in outcome.records} == kinds


def test_an_unknown_name_lists_the_known_and_writes_nothing(go, tmp_path, words_alone):
    with pytest.raises(report.BadRequest, match=r"'nonsense'; expected some of: maxplus, product, forward"):
        go(only=["forward", "nonsense"])
    assert not (tmp_path / "out").exists()


def test_an_unknown_backend_writes_nothing(go, tmp_path, monkeypatch, words_alone, set_backend):
    set_backend("abacus")
    monkeypatch.setattr(report, "REGISTRY", {})
    with pytest.raises(report.BadRequest, match="TROPIGRAD_BACKEND is 'abacus'"):
        report.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_data_write_nothing(go, tmp_path, words_alone):
    with pytest.raises(DataError, match="no such folder"):
        go(data_dir=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_second_report_appends(go, words_alone):
    go(only=["forward"])
    outcome = go(only=["maxplus"])
    found = records.read(outcome.page.with_name("results.jsonl"))
    assert len({record["run"] for record in found}) == 2
    assert len(found) > len(outcome.records)


def test_quick_takes_the_cheapest_shapes_and_default_takes_all(tiny_spec, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK_SHAPES", 1)
    spec = tiny_spec()
    assert [cell.shape_name for cell in benchmark.cells([spec], quick=True)] == ["S1"]
    assert [cell.label for cell in benchmark.cells([spec])] == ["S1 3×4×5", "S2 6×7×8"]


# ------------------------------------------------------------------------------------------------ the gate

A = torch.tensor([1.0, float("nan"), float("inf"), -2.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "identical", "share"),
    [
        ((A,), (A.clone(),), True, 0.0),
        ((torch.tensor([0.0]),), (torch.tensor([-0.0]),), True, 0.0),
        ((A,), (A + torch.tensor([1e-6, 0, 0, 0]),), False, 0.0),
        ((A,), (A + torch.tensor([1e-3, 0, 0, 0]),), False, 0.25),
        ((A,), (torch.tensor([1.0, 2.0, float("inf"), -2.0]),), False, 0.25),
        ((A,), (torch.tensor([1.0, float("nan"), -float("inf"), -2.0]),), False, 0.25),
        ((torch.tensor([1, 2]),), (torch.tensor([1, 3], dtype=torch.int32),), False, 0.5),
        ((torch.tensor([1, 2]),), (torch.tensor([1, 2], dtype=torch.int32),), True, 0.0),
        ((A,), (A[:3],), False, 1.0),
        ((A,), (A, A), False, 1.0),
        ((A,), (torch.tensor([1, 2, 3, 4]),), False, 1.0),
        ((torch.empty(0),), (torch.empty(0),), True, 0.0),
    ],
    ids=[
        "same", "signed-zero", "rounding", "one-off", "nan-lost", "infinity-turned", "winner-differs", "wider-integer",
        "shape", "count", "kind", "empty",
    ],
)  # fmt: skip
def test_agreement(ours, theirs, identical, share):
    found = benchmark.agree(ours, theirs)
    assert found.identical is identical
    assert found.share == share
