"""The report end to end on a tiny op and a made-up study: what is kept, what is refused, how it ends."""

import json
from dataclasses import replace

import pytest
import torch

from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.contract.spec import Contender
from tropigrad.perf_reports import pending, records, report, tune
from tropigrad.perf_reports.data import DataError
from tropigrad.perf_reports.measuring import benchmark, ceilings, startup
from tropigrad.perf_reports.measuring.memory import Memory
from tropigrad.perf_reports.page.systems import SYSTEMS
from tropigrad.perf_reports.studies import STUDIES, Study

from .conftest import WORKLOAD, calls, ceiling, fronts, product, summary, training


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

    def make(*contenders, study=study, others=None, workloads=None, **options):
        monkeypatch.setattr(report, "REGISTRY", {"product": tiny_spec(*contenders, workloads=workloads)})
        monkeypatch.setattr(
            report, "STUDIES", {"maxplus": Study("maxplus", study, "Worst-sample loss"), **(others or {})}
        )
        options = {"quick": not options.get("resume"), "budget_s": 0.3, **options}
        return report.run(tmp_path / "out", **options)

    make.kept = kept = []

    def roofs(quick, progress):
        yield ceiling("add_max", 1, 50.0)
        yield ceiling("memory", 1, 20.0, "GB/s")

    monkeypatch.setattr(ceilings, "measure", roofs)
    # what `explain` goes by on this machine is not to be made up
    monkeypatch.setattr(tune, "keep_ceilings", lambda records, device, by: kept.append((records, device, by)))
    monkeypatch.setattr(benchmark, "_LEAST_S", {False: 0.01, True: 0.01})
    monkeypatch.setattr(startup, "measure", lambda ops, budget_s, progress: iter([startup._record("import", [0.1])]))
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
    assert names >= {"index.html", "results.jsonl", "results.csv", "roofline.png", "speedups.svg", "cost.png"}
    assert "training-maxplus.png" in names
    assert records.read(outcome.page.with_name("results.jsonl")) == outcome.records
    kinds = [record["kind"] for record in outcome.records]
    assert kinds[0] == "run"
    assert kinds[-1] == "run_end"
    assert {"ceiling", "training", "training_summary", "gate", "timing"} <= {*kinds}
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
        "training",
        "training",
        "run_end",
    ]
    assert "Interrupted." in outcome.page.read_text()
    assert "Missing: training, maxplus, product (2)." in outcome.page.read_text()
    assert "training-maxplus.png" in {path.name for path in outcome.page.parent.iterdir()}
    assert len(report.summary(outcome)) == 7


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
        (["forward"], {"run", "ceiling", "memory", "gate", "timing", "run_end"}),
        (["product"], {"run", "ceiling", "memory", "gate", "timing", "run_end"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_only_picks_by_name(go, only, kinds, words_alone):
    outcome = go(only=only)
    assert {record["kind"] for record in outcome.records} == kinds


@pytest.mark.parametrize(("name", "near"), [("produkt", "'product'"), ("for", "'forward'"), ("xyz", "")], ids=str)
def test_an_unknown_name_gets_the_nearest_and_writes_nothing(go, tmp_path, words_alone, name, near):
    with pytest.raises(report.BadRequest, match=f"nothing is named '{name}'") as caught:
        go(only=["forward", name])
    assert ("did you mean " + near in str(caught.value)) == bool(near)
    assert "prints all 3 names" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_report_starts_up_the_ops_that_it_measures(go, monkeypatch, words_alone):
    asked = []

    def measure(ops, budget_s, progress):
        asked.append((ops, budget_s))
        yield startup._record("import", [0.1])

    monkeypatch.setattr(startup, "measure", measure)
    outcome = go(quick=False, only=["product"])
    assert of_kind(outcome, "startup")
    assert asked[0][0] == ["product"]


# ------------------------------------------------------------------------------------------- time, and going on


def interrupted_study(data_dir, quick, seed, progress):
    yield training("sparse backward", 0, 0.1, 4.0, 0.9)
    raise KeyboardInterrupt


def test_what_the_time_does_not_reach_is_named_and_resumed(go, words_alone):
    first = go(only=["product"], budget_s=1e-9)
    assert len(of_kind(first, "timing")) == 2  # one cell is always measured
    (left,) = of_kind(first, "left_out")
    assert left["what"] == "product, forward, S2 6×7×8"
    assert "1 of 3 parts wait for more time: tropigrad report --resume" in first.note
    assert report.summary(first)[-1].startswith("note ")
    whole = go(resume=True)
    assert len(of_kind(whole, "timing")) == 4
    assert of_kind(whole, "left_out") == []
    assert whole.note == ""
    assert {r["run"] for r in whole.records} == {first.records[0]["run"]}
    again = go(resume=True)
    assert "nothing was left to measure" in again.note
    assert len(again.records) == len(whole.records)


def test_a_study_that_is_out_of_time_ends_and_is_resumed(go, words_alone):
    outcome = go(only=["maxplus"], budget_s=1e-9)
    (left,) = of_kind(outcome, "left_out")
    assert left["what"] == "training, maxplus"
    assert "its curves are drawn as far as they came" in left["reason"]
    assert of_kind(outcome, "training_summary") == []
    whole = go(resume=True)
    assert of_kind(whole, "left_out") == []
    assert len(of_kind(whole, "training_summary")) == 2


def test_no_study_takes_the_turn_of_those_behind_it(go, monkeypatch, words_alone):
    def endless(data_dir, quick, seed, progress):
        yield training("sparse backward", 0, 0.1, 4.0, 0.9)
        while True:
            progress(0, 1, "training")

    def other(data_dir, quick, seed, progress):
        progress(0, 1, "training")
        yield {**summary("GSGD", "ours", 0.001), "study": "gsgd"}

    outcome = go(study=endless, others={"gsgd": Study("gsgd", other, "Training loss")}, only=["maxplus", "gsgd"])
    assert [r["what"] for r in of_kind(outcome, "left_out")] == ["training, maxplus"]
    assert [r["study"] for r in of_kind(outcome, "training_summary")] == ["gsgd"]
    assert pending.unfinished(outcome.records) == ["training, maxplus"]


def test_every_system_has_a_study():
    assert {system.study for system in SYSTEMS} == {*STUDIES}
    assert all(study.name == name for name, study in STUDIES.items())


def test_a_study_of_fronts_is_kept_drawn_and_not_walked_again(go, tmp_path):
    def walks(data_dir, quick, seed, progress):
        yield from ({k: v for k, v in r.items() if k not in ("schema_version", "run", "time")} for r in fronts())

    outcome = go(study=walks, only=["maxplus"])  # the name that it is planned under is not its records'
    assert len(of_kind(outcome, "front")) == 2
    assert (tmp_path / "out" / "training-l1path.png").is_file()
    page, complaints = report.redraw(tmp_path / "out" / "results.jsonl", tmp_path / "again")
    assert complaints == []
    assert "Loss over nonzeros" in page.read_text()


def test_a_rival_that_waits_to_be_compiled_is_measured_by_a_second_pass(tiny_spec, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_memory", lambda call: (call(), None))
    (cell, _) = benchmark.cells([tiny_spec(OURS, DEFINITION, Contender("compiled", "compiled", calls))])
    first, second = (list(benchmark.measure([cell], budget_s=0.1, compiles=on)) for on in (False, True))
    (waits,) = [r for r in first if r["kind"] == "left_out"]
    assert waits["budget"]
    assert waits["contender"] == "compiled"
    run = [{"kind": "run", "run": "abc", "planned": [cell.name]}, *first]
    assert (pending.pending(run), pending.unfinished(run)) == ([], [cell.name])
    run = records.standing([*run, *second])
    assert pending.unfinished(run) == []
    assert [r["contender"] for r in run if r["kind"] == "timing"] == ["ours", "definition", "compiled"]


def test_an_interrupted_report_keeps_the_good_page_until_it_was_resumed(go, tmp_path, words_alone):
    good = go(only=["forward"]).page.read_bytes()
    outcome = go(study=interrupted_study)
    assert outcome.exit_code == 130
    assert outcome.page == tmp_path / "out" / "unfinished" / "index.html"
    assert (tmp_path / "out" / "index.html").read_bytes() == good
    whole = go(resume=True)
    assert whole.page == tmp_path / "out" / "index.html"
    assert whole.page.read_bytes() != good
    assert {r["method"] for r in of_kind(whole, "training_summary")} == {"sparse backward", "dense autograd"}
    assert len(of_kind(whole, "ceiling")) == 2  # not measured again
    assert len(of_kind(whole, "run_end")) == 1
    assert not outcome.page.exists()


def test_a_first_page_is_drawn_while_the_rest_is_measured(go, monkeypatch, tmp_path, words_alone):
    monkeypatch.setattr(report, "FIRST_PAGE_S", 0.0)
    pages = []
    go(tell=lambda line: pages.append((line, (tmp_path / "out" / "index.html").read_text())))
    ((line, source),) = pages
    assert "a first page" in line
    assert "Still measuring." in source
    assert "training, maxplus" in source.split("Missing yet:")[1][:200]
    assert "Still measuring." not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"torch": "0.0"}}, "torch '0.0', here"),
        ({"machine": {"cpu": "another"}}, "cpu 'another', here"),
        ({"git_revision": "abc"}, "revision abc, here"),
        ({"planned": None}, "does not say what it planned"),
    ],
    ids=["versions", "machine", "revision", "plan"],
)
def test_a_run_of_elsewhere_is_not_resumed(go, tmp_path, words_alone, change, words):
    go(only=["product"])
    path = tmp_path / "out" / "results.jsonl"
    head, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(head), **change}), *rest]) + "\n")
    with pytest.raises(report.BadRequest, match=words):
        go(resume=True)


def test_nothing_to_resume(go, tmp_path):
    with pytest.raises(report.BadRequest, match="no run to resume"):
        go(resume=True)
    assert not (tmp_path / "out").exists()


def test_other_options_than_the_runs_are_refused(go, words_alone):
    go(only=["product"])
    with pytest.raises(report.BadRequest, match="--only"):
        go(resume=True, only=["forward"])


def test_an_earlier_run_of_a_file_is_drawn_again(go, tmp_path, words_alone):
    first, second = (go(only=[name]).records[0]["run"] for name in ("forward", "maxplus"))
    path = tmp_path / "out" / "results.jsonl"
    page, complaints = report.redraw(path, tmp_path / "again", run=first[:6])
    assert first in page.read_text()
    assert complaints == []
    assert second in report.redraw(path, tmp_path / "again")[0].read_text()
    with pytest.raises(report.BadRequest, match=f"no run 'zzz'; it has {first}"):
        report.redraw(path, tmp_path / "again", run="zzz")


def test_a_file_that_is_none_cannot_be_drawn(tmp_path):
    with pytest.raises(report.BadRequest, match="No such file"):
        report.redraw(tmp_path / "none.jsonl", tmp_path)
    (tmp_path / "text.jsonl").write_text("no records\n")
    with pytest.raises(report.BadRequest, match="no run that could be drawn"):
        report.redraw(tmp_path / "text.jsonl", tmp_path)


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


# ------------------------------------------------------------------------------------- dtype, shapes, threads, device


def two_dtypes(tiny_spec, *names, **options):
    """The tiny op, which takes float64 too; and its workloads by name."""
    spec = tiny_spec(workloads=[replace(WORKLOAD, name=name, **options) for name in names] or None)
    return replace(spec, dtypes=(torch.float64, torch.float32, torch.float16))


def test_a_workload_is_timed_in_its_usual_dtype_or_in_the_one_asked_for(tiny_spec):
    spec = two_dtypes(tiny_spec)
    assert spec.timed_in(spec.workloads[0]) == (torch.float32, torch.float64, torch.float16)
    assert {cell.label for cell in benchmark.cells([spec])} == {"S1 3×4×5", "S2 6×7×8"}
    cells = benchmark.cells([spec], dtype=torch.float64)
    assert [cell.label for cell in cells] == ["S1 3×4×5 float64", "S2 6×7×8 float64"]
    assert benchmark.cells([spec], dtype=torch.int32) == []
    (record,) = benchmark.unfit([spec], (), torch.int32, ())
    assert (record["what"], record["reason"]) == ("product, forward", "it is not timed in int32")


def test_a_workload_that_converts_its_inputs_is_timed_in_no_other_dtype(tiny_spec):
    spec = two_dtypes(tiny_spec, "bytes", dtypes=(torch.uint8,))
    assert [cell.dtype for cell in benchmark.cells([spec])] == [torch.uint8] * 2
    assert benchmark.cells([spec], dtype=torch.float64) == []
    assert {cell.label for cell in benchmark.cells([spec], dtype=torch.uint8)} == {"S1 3×4×5", "S2 6×7×8"}


def test_training_takes_no_integers():
    spec = REGISTRY["tropical_matmul"]
    names = {cell.workload.name for cell in benchmark.cells([spec], dtype=torch.int32)}
    assert names == {"forward", "forward + winners"}


def test_shapes_by_name_and_by_sizes_replace_the_standard_ones(tiny_spec):
    spec = tiny_spec()
    asked = ["S2", {"N": 9, "M": 2, "K": 3}, "another's"]
    assert [cell.label for cell in benchmark.cells([spec], shapes=asked, quick=True)] == ["S2 6×7×8", "own 2×3×9"]
    (record,) = benchmark.unfit([spec], (), None, ["another's", {"M": 3}])
    assert record["reason"] == "it has none of the shapes asked for"


def test_in_sixteen_bits_the_reference_may_round_at_each_of_its_steps(tiny_spec, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_memory", lambda call: (call(), None))
    off = Contender("definition", "dense", off_by(1e-3))
    spec = two_dtypes(tiny_spec)
    spec = replace(spec, workloads=(replace(WORKLOAD, contenders=(OURS, off)),))
    for dtype, gate in ((torch.float16, "green"), (torch.float32, "red")):
        records = list(benchmark.measure(benchmark.cells([spec], dtype=dtype)[:1], budget_s=0.01, quick=True))
        assert [r["gate"] for r in records if r["kind"] == "gate"] == [gate]
        assert {r["dtype"] for r in records if r["kind"] == "timing"} == {benchmark.short(dtype)}


def test_the_settings_are_kept_shown_and_taken_up_by_resume(go, words_alone, monkeypatch):
    threads = torch.get_num_threads()
    try:
        options = {"only": ["product"], "shapes": ["M=2,K=3,N=4"], "threads": 1, "dtype": "float32", "device": "cpu"}
        outcome = go(**options)
        settings = outcome.records[0]["settings"]
        assert settings | options == settings
        assert {r["shape_label"] for r in of_kind(outcome, "timing")} == {"own 2×3×4"}
        assert {r["threads"] for r in of_kind(outcome, "timing")} == {1}
        words = "--only product --threads 1 --device cpu --dtype float32 --shapes M=2,K=3,N=4"
        assert words in outcome.page.read_text()
        torch.set_num_threads(threads + 1)
        whole = go(resume=True)
        assert whole.records[0]["run"] == outcome.records[0]["run"]
        for name, other in (("dtype", "float64"), ("shapes", ["S1"]), ("threads", 3)):
            with pytest.raises(report.BadRequest, match=f"--{name} was .*, asked for "):
                go(resume=True, **{name: other})
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float8"}, "--dtype is 'float8'; expected one of float32"),
        ({"device": "cuda"}, "--device is cuda; torch has cpu here"),
        ({"shapes": ["S3"]}, "no op has a shape 'S3'; did you mean 'S2' or 'S1'. they have S1, S2"),
        ({"shapes": ["M=3,K=4"]}, "no op has the sizes M, K; they have: product M, K, N"),
        ({"shapes": ["M=3,K=4,N=0"]}, "N is 0; expected positive integers"),
        ({"shapes": ["M=3,K=4,N=x"]}, "expected sizes by name, such as M=256"),
        ({"only": ["maxplus"], "shapes": ["S1"]}, "sizes are those of ops, and --only names none"),
    ],
    ids=["dtype", "device", "name", "letters", "size", "text", "no-op"],
)
def test_what_cannot_be_measured_so_is_refused_and_nothing_is_written(go, tmp_path, words_alone, options, words):
    if options.get("device") == benchmark.DEVICE.type:
        pytest.skip("this machine has it")
    with pytest.raises(report.BadRequest, match=words):
        go(**options)
    assert not (tmp_path / "out").exists()


def test_training_is_left_out_by_name_in_another_dtype(go, words_alone):
    outcome = go(dtype="float64")
    left = {r["what"]: r["reason"] for r in of_kind(outcome, "left_out")}
    assert left == {"training, maxplus": "it trains in float32"}
    assert {r["shape_label"] for r in of_kind(outcome, "timing")} == {"S1 3×4×5 float64", "S2 6×7×8 float64"}
    assert "float64 · " in outcome.page.read_text()


def test_what_leaves_nothing_to_measure_is_refused_with_what_can_be(go, tmp_path, words_alone):
    with pytest.raises(report.BadRequest, match="with --dtype float64: training is in float32"):
        go(only=["maxplus"], dtype="float64")
    assert not (tmp_path / "out").exists()


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
