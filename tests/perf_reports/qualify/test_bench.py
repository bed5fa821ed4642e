"""The items of a device: the most valuable first, each in turn; and how one is carried out."""

import pytest
import torch

from tropigrad import autotune
from tropigrad.kernels.contract import conformance
from tropigrad.kernels.contract.conformance import Case, NotHere, machines
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.perf_reports.qualify import stages
from tropigrad.perf_reports.qualify.bench import Bench
from tropigrad.perf_reports.qualify.item import Item

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan():
    return Bench(("tropical_matmul", "soft_threshold")).plan()


def test_stages_come_in_their_order_and_each_item_once(plan):
    order = list(dict.fromkeys(item.stage for item in plan))
    assert order == list(stages.STAGES)
    assert len({item.name for item in plan}) == len(plan)
    assert sum(stages.STAGES.values()) == pytest.approx(1.0)


def test_conformance_begins_with_a_case_of_every_promise_of_what_is_on(plan):
    names = [item.name for item in plan if item.stage == "conformance"]
    promises = [
        name.removeprefix(f"{op}-").split("-")[0] for name in names for op in REGISTRY if name.startswith(f"{op}-")
    ]
    assert {*promises[: 2 * len({*promises})]} == {*promises}
    assert not any("-triton-" in name or "-torch-" in name for name in names)
    rest = [item.name for item in plan if item.stage == "the rest"]
    assert any("-triton-" in name for name in rest)
    assert rest[-2:] == ["tropical_matmul-opcheck", "soft_threshold-opcheck"]


def test_every_workload_is_timed_at_one_shape_before_any_is_at_two(plan):
    cells = [item.about[:2] for item in plan if item.stage == "speed"]
    assert len({*cells}) < len(cells)
    assert {*cells[: len({*cells})]} == {*cells}


def test_gluon_kernels_are_proven_and_then_tuned_where_they_can_run(monkeypatch):
    monkeypatch.setattr(backend, "why_off", lambda name, device: "")
    items = Bench(("tropical_matmul",)).plan()
    first = [item for item in items if item.stage == "tropical_matmul"]
    assert first[0].name == "tuning of tropical_matmul"
    assert first[-1].name == "tuning of tropical_matmul (gluon)"
    names = [item.name for item in first]
    assert "tropical_matmul-repetitions-gluon-max_plus-float32-S1-ragged" in names
    assert "tropical_matmul-repetitions-gluon-min_plus-float16-S2-batched" in names
    assert not any("log" in name for name in names)
    assert not any("gluon" in item.name for item in items if item.stage != "tropical_matmul")
    assert sum(item.weight for item in first) == pytest.approx(3.0)


def test_a_repetition_compares_with_the_portable_kernel(monkeypatch):
    """With torch in the place of both: the sizes, the batches and the comparison are real."""
    asked = []
    forced = machines.forced
    monkeypatch.setattr(backend, "why_off", lambda name, device: "")
    monkeypatch.setattr(machines, "forced", lambda name, device: (asked.append(name), forced("torch", device))[1])
    shape = {"M": 9, "K": 12, "N": 7}
    for batched in (False, True):
        machines._check_repetitions(
            REGISTRY["tropical_matmul"], CPU, {"semiring": "max_plus"}, torch.float32, shape, batched
        )
    assert asked == (["triton"] + ["gluon"] * machines.REPETITIONS) * 2


def _raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "result", "detail"),
    [
        (lambda: None, "passed", ""),
        (_raises(AssertionError("7 of 9 differ\nand more")), "failed", "AssertionError: 7 of 9 differ"),
        (_raises(NotHere("no GPU")), "not here", "no GPU"),
    ],
    ids=["passes", "fails", "cannot be told"],
)
def test_a_case_is_answered(run, result, detail):
    bench = Bench(())
    bench._cases = {"a": Case("op", "promise", "a", run)}
    answer = bench.carry_out(Item("conformance", "case", "a", "op", ("a",)), 1.0, lambda message: None)
    assert (answer.result, answer.detail) == (result, detail)


def test_where_the_context_is_spoilt_no_answer_is_believed(monkeypatch):
    monkeypatch.setattr(autotune, "why_lost", lambda device: "an illegal memory access")
    bench = Bench(())
    bench._cases = {"a": Case("op", "promise", "a", lambda: None)}
    answer = bench.carry_out(Item("conformance", "case", "a", "op", ("a",)), 1.0, lambda message: None)
    assert (answer.result, answer.detail) == ("lost", "the device's context is spoilt: an illegal memory access")


def test_the_cases_of_a_promise_that_is_slow_to_list_are_one_item(monkeypatch):
    bench, told, asked = Bench(("soft_threshold",)), [], []
    item = next(item for item in bench.plan() if item.kind == "cases")
    found = [Case("soft_threshold", "opcheck", "a", lambda: None), Case("soft_threshold", "opcheck", "b", lambda: None)]
    monkeypatch.setattr(conformance, "cases", lambda *what: (asked.append(what), found)[1])
    answer = bench.carry_out(item, 1.0, told.append)
    assert asked == [(bench.device, ("soft_threshold",), ("opcheck",))]
    assert (answer.result, answer.detail, len(told)) == ("passed", "2 cases", 2)
    found.append(Case("soft_threshold", "opcheck", "c", _raises(ValueError("no schema"))))
    answer = bench.carry_out(item, 1.0, told.append)
    assert (answer.result, answer.detail) == ("failed", "1 of 3: c: ValueError: no schema")


def test_findings_are_told_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    told = []
    item = Item("tuning", "tuning", "tuning of soft_threshold", "soft_threshold", ("soft_threshold", "auto"))
    answer = Bench(("soft_threshold",)).carry_out(item, 0.0, told.append)
    assert answer.result == "unfinished"
    assert {message["record"]["how"] for message in told if "record" in message} == {"cut off"}
