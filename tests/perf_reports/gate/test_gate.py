"""The gate on somebody else's kernels: planted regressions are caught, and what cannot be measured is never green."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tropigrad.autotune.machine import ahead_of_time
from tropigrad.perf_reports import gate
from tropigrad.perf_reports.gate import Baseline, BaselineError, compiled, host, outputs, unlaunched
from tropigrad.triton_or_stub import triton

pytest.importorskip("triton", reason="triton is not installed")

KERNELS = """
import torch, triton, triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

@triton.jit
def total(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + j, mask=j < columns, other=0.0)
        sums += x
    tl.store(y_ptr + row, tl.sum(sums, 0))

@gluon.jit
def copied(x_ptr, y_ptr, n, BLOCK: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([2], [32], [4], [0])
    i = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=layout)
    gl.store(y_ptr + i, gl.load(x_ptr + i, mask=i < n), mask=i < n)

def totals(x):
    y = torch.empty(x.shape[0])
    total[(x.shape[0],)](x, y, x.shape[1], BLOCK=64)
    return y

def scaled(x):
    return x.mul(2.0)
"""
GATE = """
import torch
from kernels import copied, scaled, total, totals
from tropigrad.perf_reports.gate import Call, Kernel

X = torch.ones(3, 100)
GATE = [
    Kernel(total, {"x_ptr": "*fp32", "y_ptr": "*fp32", "columns": "i32"}, {"BLOCK": TILE}, targets=(90,)),
    Kernel(copied, {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}, {"BLOCK": 256}, targets=(80,)),
    Call("totals", lambda: totals(X), tiers=(1, 3)),
    Call("scaled", lambda: scaled(X), tiers=(2,)),
]
"""
PLANTED = {  # name: (tier, what is replaced, by what, tile, figures that must be red)
    "an extra load in the inner loop": (
        0, "        sums += x\n",
        "        sums += x * tl.load(y_ptr + j, mask=j < columns, other=0.0)\n", 1024, {"loop global loads"},
    ),
    "extra loads in Gluon": (
        0, "mask=i < n), mask", "mask=i < n) + gl.load(y_ptr + i) / gl.load(y_ptr - i), mask", 1024, {"instructions"},
    ),
    "a spilled tile": (0, "BLOCK: tl.constexpr", "BLOCK: tl.constexpr", 32768, {"stack bytes"}),
    "an extra load, counted": (
        1, "        sums += x\n", "        sums += x * tl.load(x_ptr + j, mask=j < columns, other=0.0)\n", 1024,
        {"elements loaded", "bytes loaded"},
    ),
    "an extra dispatch": (2, "x.mul(2.0)", "x.mul(2.0).neg_()", 1024, {"dispatched operators"}),
    "an extra allocation": (2, "x.mul(2.0)", "x.mul(2.0).contiguous().clone()", 1024, {"tensors allocated"}),
    "a materialised tensor": (
        2, "x.mul(2.0)", "(x[:, :, None] * torch.tensor([2.0])).sum(2)", 1024,
        {"bytes allocated", "dispatched operators"},
    ),
    "more work in Python": (
        2, "    return x.mul(2.0)", "    for _ in range(50): pass\n    return x.mul(2.0)", 1024,
        {"bytecode instructions"},
    ),
    "more work before a launch": (
        3, "    y = torch.empty", "    for _ in range(50): pass\n    y = torch.empty", 1024, {"bytecode instructions"},
    ),
    "one more launch": (
        3, "BLOCK=64)\n", "BLOCK=64)\n    total[(1,)](x, y, x.shape[1], BLOCK=64)\n", 1024, {"launches"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of a stranger with its baseline."""
    folder = tmp_path_factory.mktemp("stranger")
    write(folder)
    outcome = gate.check(folder / "perf_gate.py", folder / "perf_baseline.json", update=True)
    assert (outcome.failures, outcome.exit_code) == ([], 0)
    return folder


def write(folder: Path, old: str = "", new: str = "", tile: int = 1024) -> None:
    assert old in KERNELS
    (folder / "kernels.py").write_text(KERNELS.replace(old, new) if old else KERNELS)
    (folder / "perf_gate.py").write_text(GATE.replace("TILE", str(tile)))


def check(folder: Path, *tiers: int) -> gate.Outcome:
    return gate.check(folder / "perf_gate.py", folder / "perf_baseline.json", tiers=tiers)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_is_caught(name, repository):
    tier, old, new, tile, figures = PLANTED[name]
    write(repository, old, new, tile)
    outcome = check(repository, tier)
    assert outcome.failures == []
    assert figures <= {d.figure for d in outcome.differences if d.verdict == "worse"}
    assert outcome.exit_code == 1


def test_an_unchanged_kernel_passes_and_twice_the_same(repository):
    write(repository)
    outcome = check(repository, *gate.TIERS)
    assert (outcome.differences, outcome.failures, outcome.exit_code) == ([], [], 0)


def test_a_kernel_that_does_not_compile_is_named_and_not_green(repository):
    write(repository, "tl.store(y_ptr + row, tl.sum(sums, 0))", "tl.store(y_ptr + row, nothing)")
    outcome = check(repository, 0)
    assert outcome.exit_code == 2
    assert "total, sm_90" in outcome.failures[0]
    assert "nothing" in outcome.failures[0]  # the compiler's own line


@pytest.mark.parametrize(
    ("gate_text", "words"),
    [
        pytest.param("GATE = []", "GATE is empty: it names no kernel", id="empty"),
        pytest.param("x = 1", "GATE is NoneType; expected a list", id="none"),
        pytest.param("GATE = [3]", "GATE holds a int; expected Kernel and Call", id="kind"),
        pytest.param("raise OSError('torn')", "it raises OSError: torn", id="raises"),
        pytest.param(GATE.replace("TILE", "8").replace('"columns": "i32"', '"rows": "i32"'),
                     "columns missing, rows unknown", id="signature"),
        pytest.param(GATE.replace("TILE", "8").replace("GATE = [", "GATE = 2 * ["), "two kernels are called 'copied'",
                     id="twice"),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_fit_is_refused(gate_text, words, repository):
    write(repository)
    (repository / "perf_gate.py").write_text(gate_text)
    outcome = check(repository, 0)
    assert outcome.exit_code == 2
    assert words in " ".join(outcome.failures)


def test_baselines_of_another_kind_are_refused(repository, tmp_path):
    write(repository)
    records = [{"tier": 0, "of": "k", "target": "sm_90", "figures": {"registers": 3}}]
    ours, theirs = (
        {"triton": "3.7.1", "torch": "2", "python": "3.11.7"},
        {"triton": "9.9", "torch": "2", "python": "3.11"},
    )
    with pytest.raises(BaselineError, match=r"nothing of tier 0, triton 3\.7\.1; it has tier 0, triton 9\.9"):
        Baseline().updated(records, theirs).compare(records, ours)
    path = tmp_path / "b.json"
    for text, words in (("{", "no baseline of this gate"), ('{"schema": 99, "figures": {}}', "its schema is 99")):
        path.write_text(text)
        with pytest.raises(BaselineError, match=words):
            Baseline.read(path)
    with pytest.raises(BaselineError, match="no baseline; make one with --update"):
        Baseline.read(tmp_path / "absent.json")


def test_figures_within_tolerance_better_new_and_gone():
    versions = {"triton": "3", "torch": "2", "python": "3.11.7"}

    def record(of: str, tier: int, **figures: int) -> dict:
        return {"tier": tier, "of": of, "target": "t", "figures": {k.replace("_", " "): v for k, v in figures.items()}}

    before = [
        record("a", 2, bytecode_instructions=10_000),
        record("b", 2, dispatched_operators=3),
        record("gone", 2, x=1),
    ]
    now = [record("a", 2, bytecode_instructions=10_150), record("b", 2, dispatched_operators=2), record("new", 2, x=1)]
    differences = Baseline().updated(before, versions).compare(now, versions)
    assert {d.of: d.verdict for d in differences} == {
        "a": "within tolerance",
        "b": "better",
        "gone": "gone",
        "new": "new",
    }
    outcome = gate.Outcome(now, differences, [], versions)
    assert outcome.exit_code == 0
    assert "--update" in "\n".join(outputs.lines(outcome))


def test_outputs_for_people_ci_and_machines(tmp_path):
    difference = gate.Difference(0, "k", "sm_90", "registers", 40, 50, "worse")
    records = [{"tier": 0, "of": "k", "target": "sm_90", "figures": {"registers": 50}}]
    outcome = gate.Outcome(
        records, [difference], ["t, host: it\nbroke"], {"triton": "3", "torch": "2", "python": "3.11"}
    )
    assert "worse  k" in outputs.lines(outcome)[1]
    assert "| worse | k | sm_90 | registers | 40 | 50 | +25.0% |" in outputs.markdown(outcome)
    assert outputs.github_annotations(outcome, Path("g.py")) == [
        "::error file=g.py,title=performance::k, sm_90: registers: 40 -> 50 (+25.0%25)",
        "::warning file=g.py,title=not measured::t, host: it%0Abroke",
    ]
    outputs.write_junit(outcome, tmp_path / "j.xml")
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert [x.tag for x in root.iter() if x.tag in ("failure", "error")] == ["failure", "error"]
    outputs.write_records(outcome, tmp_path / "g.jsonl")
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert kinds == ["gate", "measured", "difference", "not measured", "verdict"]


def test_the_walk_through_of_the_page(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "performance-gate.md").read_text()
    kernels, declared = (
        textwrap.dedent(page[page.index(first) : page.index(after)])
        for first, after in (
            ("    import torch, triton", "and beside it `perf_gate.py`"),
            ("    import torch\n    from my_kernels", "`Kernel` takes the jitted"),
        )
    )
    load = 'other=-float("inf"))'
    assert load in kernels
    assert len(declared.strip().splitlines()) <= 10

    def command(*arguments: str, load_again: bool = False) -> tuple[int, str]:
        twice = f"{load} + tl.load(x_ptr + row * columns + j, mask=j < columns)"
        (tmp_path / "my_kernels.py").write_text(kernels.replace(load, twice) if load_again else kernels)
        (tmp_path / "perf_gate.py").write_text(declared)
        environment = {**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
        words = [sys.executable, "-m", "tropigrad", "perf", "gate", *arguments]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout

    code, told = command("--update")
    assert (code, told.splitlines()[-1]) == (0, "passed: 5 kernels and calls, none worse than in the baseline")
    code, told = command(load_again=True)
    assert code == 1
    assert "::error file=perf_gate.py,title=performance::softmax, interpreter: bytes loaded: 16000 -> 32000" in told
    assert "❌" in (tmp_path / "summary.md").read_text()


def test_the_launcher_is_left_out_and_nothing_is_launched():
    """Whatever Triton does with a launch, its Python is no part of the figure, nor what that calls."""
    seen = []

    class Kernel(triton.JITFunction):
        def __init__(self):
            pass

    def call():
        seen.append(Kernel()[(1,)](1, 2))

    def plain():
        seen.append(None)

    figures = unlaunched.figures(call)
    assert figures["launches"] == 1
    assert seen == [None] * 4
    assert 0 < figures["bytecode instructions"] - host.bytecode(plain) < 60


def test_frames_that_are_left_out_leave_out_what_they_call_and_nothing_after():
    def deeper():
        return sum(x for x in range(100))

    def aside():
        return deeper()

    def raising():
        deeper()
        raise ValueError

    def call(first=lambda: None):
        first()
        return sum(x * x for x in range(10))

    bare = host.bytecode(call)
    assert host.bytecode(lambda: call(aside)) > bare + 200
    inside = host.bytecode(lambda: call(aside), (aside.__code__,))
    assert abs(inside - bare) < 15

    def caught():
        with contextlib.suppress(ValueError):
            raising()
        call()

    assert bare < host.bytecode(caught, (raising.__code__,)) < bare + 80


def test_a_compiler_that_ends_its_process_is_told(monkeypatch):
    monkeypatch.setattr(ahead_of_time, "assemble", lambda *of, **also: os._exit(3))
    (record,) = compiled.measure([gate.Kernel(None, {}, targets=(90,), name="fatal")])
    assert record["error"] == "the compiler ended its process (exit code 3)"
