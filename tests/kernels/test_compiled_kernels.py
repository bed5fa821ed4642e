"""Every Triton and Gluon kernel as it is compiled for a GPU: its PTX, interpreted, beside the definition, and no fault.

The cases are the conformance suite's, with Triton forced on CPU tensors, and those below that the suite does not make.
A sample runs here; compiled_kernels.json tells what a run of all of them has covered, kernel by kernel, and which
instructions triton emits. Run as a script without TRITON_INTERPRET, this file runs the cases that match a pattern and
prints what they did; with --table it writes the JSON, with --opcodes that part of it.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import tropigrad.kernels
import tropigrad.optim
from tropigrad import autotune, triton_or_stub
from tropigrad.kernels.contract.conformance import TABLES, NotHere, values
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.tropical_matmul import by_gluon, by_triton
from tropigrad.kernels.tropical_matmul.definition import tropical_matmul_ref
from tropigrad.kernels.tropical_winners_scatter import by_triton as winners_scatter
from tropigrad.optim.worst_sample import Dense
from tropigrad.optim.worst_sample import by_triton as worst_sample
from tropigrad.optim.worst_sample.definition import State
from tropigrad.perf_reports import ptx
from tropigrad.perf_reports.ptx.instructions import Compiler
from tropigrad.perf_reports.ptx.parser import parse
from tropigrad.perf_reports.ptx.steps import Steps
from tropigrad.perf_reports.ptx.values import Approximations

pytest.importorskip("triton", reason="triton is not installed")

TABLE = Path(__file__).with_name("compiled_kernels.json")
CPU = torch.device("cpu")
PROMISES = ("forward", "subgradient", "deterministic", "indices", "strides", "ends", "scaling")
PER_PROMISE_S = 30.0  # of the table's run, after which the other cases of an op and a promise are left out
# group -> patterns of the sample's cases: a process each
SAMPLE = {
    "in place": (
        "scatter_step-forward-triton-duplicates-momentum-float32",
        "scatter_step-deterministic-triton-rows-momentum",
        "Tournament-forward-triton-ties-max-float32",
        "path_step-forward-triton-plain-float32-17x70x3",
    ),
    "worst sample": ("worst_sample-(iteration|visit)-hinge-float64",),
    "products": (
        "tropical_matmul-forward-triton-(rounding-max_plus-bfloat16|special-max_plus-float32-propagate)",
        "winners_scatter-.*",
        "gluon-float32-sm_90-splits-2",
        "product-64x64x64",
    ),
    "the others": (
        "tropical_conv2d-forward-triton-messy-dilated-max_plus-float32-propagate",
        "tropical_matvec-forward-triton-max_times-float32-1x1x1",
        "(gather_softmax-forward-triton-bare|hard_threshold-forward-triton-adaline-unweighted)-bfloat16-.*",
        "(pack_bits-forward-triton-rows-bfloat16|cooccurrence-forward-triton-labels-int64)",
        "(proximal_candidates-forward-triton-eight-float32-17x33|log_shift-forward-triton-bfloat16-scale-inf)",
        "(soft_threshold-forward-triton-number-0.0-float32|held_step-forward-triton-scalars)",
        "largest_path-forward-triton-linear-float32-1x1",
    ),
}

Case = tuple[str, Callable[[], None]]


# ------------------------------------------------------------------------------------------------ further cases


def _operands(dtype: torch.dtype, B: int, M: int, K: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small integers, which tie."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-5, 6, shape, generator=generator).to(dtype) for shape in ((B, M, K), (B, K, N)))
    return a, b


def _gluon(dtype: torch.dtype, capability: tuple[int, int], splits: int) -> None:
    """Ragged tiles, of which the paddings are read; more k-blocks than stages."""
    a, b = _operands(dtype, 2, 67, 150, 65)
    default = by_gluon.FORWARD.default({"dtype": str(dtype), "winners": True, "K": 150})
    with (
        mock.patch.object(by_gluon, "_device", return_value=(132, capability)),
        autotune.override(by_gluon.FORWARD.name, {**default, "SPLITS": splits}),
    ):
        values, winners = by_gluon.forward(a, b, "max_plus", True, False)
    expected, indices = tropical_matmul_ref(a, b)
    assert torch.equal(values, expected)
    assert torch.equal(winners.long(), indices)


def _product() -> None:
    a, b = _operands(torch.float32, 1, 64, 64, 64)
    values, winners = by_triton.forward(a, b, "max_plus", True, False)
    expected, indices = tropical_matmul_ref(a, b)
    assert torch.equal(values, expected)
    assert torch.equal(winners.long(), indices)


def _scatter(deterministic: bool) -> None:
    """All rows to few winners, which many blocks add to."""
    generator = torch.Generator().manual_seed(0)
    grad, winners = torch.randn(1, 70, 130, generator=generator), torch.randint(0, 3, (1, 70, 130), generator=generator)
    with mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=deterministic):
        got = winners_scatter.scatter(grad, winners, None, None, 4, "max_plus", True, True)
    rows = torch.zeros(1, 70, 4).scatter_add_(2, winners, grad)
    columns = torch.zeros(1, 4, 130).scatter_add_(1, winners, grad)
    for ours, theirs in zip(got, (rows, columns), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def _worst_sample(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Iterations of one program, of blocks of which the last takes the step, or of visits: the definition's bits."""
    helpers = _module("optim/worst_sample/test_iterations.py")
    N = 60 if kind == "program" else 300
    ours = _Visited if kind == "visit" else worst_sample.Cached
    with mock.patch.object(worst_sample, "LARGEST", 0 if kind == "iteration" else worst_sample.LARGEST):
        dense, cached = (make(helpers.run_of(1, N=N, watched=50, dtype=dtype, **options)) for make in (Dense, ours))
        for iterations in (1, 3):
            helpers.assert_alike(dense, cached, iterations)


class _Visited(worst_sample.Cached):
    """As on one of several ranks: the step is the definition's, and a launch has the caches follow it."""

    run = Dense.run

    def __init__(self, state: State) -> None:
        super().__init__(state, is_shared=True)


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("helpers", Path(__file__).parent.parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def further() -> Iterator[Case]:
    for dtype in (torch.float32, torch.float64):
        for kind in ("program", "iteration", "visit"):
            for rule, options in (
                ("hinge", {}),
                ("cross_entropy", {"loss": "cross_entropy"}),
                ("sqrt", {"step": "sqrt"}),
            ):
                orders = "orders-" * (kind != "program" and (rule, dtype) == ("hinge", torch.float32))
                yield (
                    f"worst_sample-{orders}{kind}-{rule}-{str(dtype).removeprefix('torch.')}",
                    functools.partial(_worst_sample, kind, dtype, options),
                )
    if triton_or_stub.HAS_GLUON:
        for dtype in by_gluon.DTYPES:
            for capability in ((9, 0), (8, 0)):
                for splits in (1, 2):
                    name = f"{str(dtype).removeprefix('torch.')}-sm_{capability[0]}{capability[1]}"
                    yield f"gluon-{name}-splits-{splits}", functools.partial(_gluon, dtype, capability, splits)
    yield "product-64x64x64", _product
    yield "winners_scatter-orders-fixed_point", lambda: _scatter(True)
    yield "winners_scatter-any-order", lambda: _scatter(False)


def every_case() -> Iterator[Case]:
    yield from further()
    for spec in REGISTRY.values():
        for promise in TABLES:
            if promise.__name__ in PROMISES and promise.__name__ not in spec.left_out:
                for case in promise(spec, CPU):
                    # those of "far" hold 4 GiB, of which each launch would make copies
                    if f"-{case.promise}-triton-" in case.name and not case.name.endswith("-far"):
                        yield case.name, case.run


# ------------------------------------------------------------------------------------------------ running them


@contextmanager
def triton_on_the_cpu() -> Iterator[None]:
    why_off = backend.why_off
    with (
        mock.patch.object(backend, "why_off", lambda name, device: "" if name == "triton" else why_off(name, device)),
        backend.forcing("triton", everywhere=True),
    ):
        yield


def result_of(name: str, run: Callable[[], None]) -> dict[str, Any]:
    """What a case did: its launches by kernel, and why it failed; orders are compared where its name says so."""
    torch.manual_seed(0)
    orders = ptx.ORDERS if "-orders-" in name else ptx.TOGETHER
    capability = 80 if "sm_80" in name else 90
    began, failure = time.perf_counter(), ""
    made: list[ptx.Made] = []
    try:
        # torch.empty's own filling would hide what nobody wrote
        with (
            mock.patch.object(values, "poisoned", contextlib.nullcontext),
            ptx.emulated(capability, orders) as made,
            triton_on_the_cpu(),
        ):
            run()
    except NotHere:
        pass
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    kernels: dict[str, list[int]] = {}
    for launch in made:
        x, y, z = launch.grid
        count, blocks = kernels.get(launch.kernel, (0, 0))
        kernels[launch.kernel] = [count + 1, max(blocks, x * y * z)]
    return {"case": name, "failure": failure, "kernels": kernels, "seconds": round(time.perf_counter() - began, 1)}


def matching(patterns: tuple[str, ...]) -> Iterator[Case]:
    wanted = re.compile("|".join(patterns))
    return ((name, run) for name, run in every_case() if wanted.fullmatch(name))


def in_a_process_that_compiles(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def check(*patterns: str) -> list[dict[str, Any]]:
    results = [json.loads(line) for line in in_a_process_that_compiles(*patterns).splitlines()]
    assert not {one["case"]: one["failure"] for one in results if one["failure"]}
    return results


@pytest.mark.parametrize("group", SAMPLE)
def test_what_was_compiled_computes_the_definition(group):
    results = check(*SAMPLE[group])
    for pattern in SAMPLE[group]:
        assert any(re.fullmatch(pattern, one["case"]) and one["kernels"] for one in results), f"{pattern} ran nothing"


@pytest.mark.slow
@pytest.mark.parametrize("op", [*REGISTRY, "worst_sample", "gluon", "winners_scatter"])
def test_every_case_of_an_op(op):
    check(f"{re.escape(op)}-.*")


def table() -> dict[str, Any]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_every_kernel_is_in_the_table():
    folders = (Path(str(package.__file__)).resolve().parent for package in (tropigrad.kernels, tropigrad.optim))
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    written = {name for path in sources for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert written == set(table()["kernels"])


# ------------------------------------------------------------------------------------------------ instructions


@pytest.mark.parametrize("version", table()["opcodes"] if TABLE.exists() else [])
def test_every_instruction_that_triton_emits_is_known(version):
    """Of all kernels, dtypes and forms, for sm_80 and sm_90; with the statement in which it was met first."""
    for opcode, statement in table()["opcodes"][version].items():
        line = statement.replace("PARAMETER", "f_param_0")
        body = f".visible .entry f(.param .u64 f_param_0)\n{{\n{line};\nL:\nret;\n}}\n"
        program = parse(body.replace("global_smem", "0"))
        assert program.instructions[0].opcode == opcode
        assert len(Steps(program, Compiler(program, Approximations())).list) == 2


def statements(text: str) -> Iterator[tuple[str, str]]:
    """(opcode, statement) of a PTX text."""
    for at in parse(text).instructions:
        operands = ", ".join(at.operands) if at.parts[0] != "bra" else "L"
        operands = re.sub(r"\w+_param_\d+", "PARAMETER", operands)
        yield at.opcode, f"{at.opcode} {operands}".strip()


def opcodes() -> dict[str, str]:
    """Opcode -> a statement, of every launch that the ops make, and of the Gluon kernels."""
    ahead, gluon = _module("kernels/test_ahead_of_time.py"), _module("kernels/test_gluon.py")
    compiler = ahead.ahead_of_time
    found: dict[str, str] = {}
    for dtype in ahead.DTYPES:
        for launch in ahead.recorded(dtype, (), False):
            for capability in (80, 90):
                made = compiler.assemble(
                    launch.kernel, launch.signature, launch.constants, capability, launch.warps,
                    enable_fp_fusion=launch.fuses,
                )  # fmt: skip
                found = {**dict(statements(made.assembly)), **found}
    for case in gluon.CASES:
        if not case.endswith("sm_100"):
            with mock.patch.object(compiler, "machine_codes", lambda made, _: [one.assembly for one in made]):
                found = {**dict(statements(gluon.compiled(case)[0])), **found}
    return dict(sorted(found.items()))


@pytest.mark.slow
def test_the_table_has_every_instruction():
    version = ".".join(triton_or_stub.triton.__version__.split(".")[:2])
    found = json.loads(in_a_process_that_compiles("--opcodes"))
    assert set(found) <= set(table()["opcodes"][version])


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    match arguments:
        case ["--opcodes"]:
            print(json.dumps(opcodes()))
        case ["--table"]:
            spent: dict[str, float] = {}
            kernels: dict[str, dict[str, Any]] = {}
            for name, run in every_case():
                promise = "-".join(name.split("-")[:2])
                if spent.get(promise, 0) > PER_PROMISE_S and "-orders-" not in name:
                    continue
                one = result_of(name, run)
                spent[promise] = spent.get(promise, 0) + one["seconds"]
                print(json.dumps(one), file=sys.stderr, flush=True)
                if one["failure"]:
                    raise SystemExit(f"{name}: {one['failure']}")
                for kernel, (launches, blocks) in one["kernels"].items():
                    row = kernels.setdefault(kernel, {"cases": 0, "launches": 0, "blocks": 0, "orders": False})
                    row["cases"] += 1
                    row["launches"] += launches
                    row["blocks"] = max(row["blocks"], blocks)
                    row["orders"] |= "-orders-" in name
            content = table() if TABLE.exists() else {"opcodes": {}}
            content["kernels"] = dict(sorted(kernels.items()))
            TABLE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        case patterns:
            for name, run in matching(tuple(patterns)):
                print(json.dumps(result_of(name, run)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
