"""Writes the tables that follow from the code into the pages of docs/: `python docs/write_tables.py`.

A table stands between two comments of its page:

    <!-- facts of tropical_matmul: begin -->   <!-- facts of tropical_matmul: end -->
    <!-- names of nn: begin -->                <!-- names of nn: end -->
    <!-- launches of perf_baseline.json: begin --> <!-- launches of perf_baseline.json: end -->
    <!-- proof of kernels: begin -->           <!-- proof of kernels: end -->

Facts of an op (dtypes, backends, forms, promises, least costs) are read from its spec, the names of a package from its
`__all__` and its docstrings, what launches cost the host from the gate's baseline, what proves the kernels from
tests/kernels/compiled_kernels.json.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COMMAND = "python docs/write_tables.py"
PLACE = re.compile(r"<!-- (facts|names|launches|proof) of ([\w.]+): begin -->.*?<!-- \1 of \2: end -->", re.DOTALL)

if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))  # this checkout, whatever is installed

CONSTANTS = {  # names that are no class or function, and so have no docstring
    "FTPROP_SETTINGS": "the settings of the papers' networks, by data set: a mapping of TrainingSettings",
    "NOMINAL": "the ceilings of devices by their data sheets, for what was not measured",
    "TUNABLE": "what can be tuned, by name: each op, and the iterations on the worst sample",
    "Config": "a config: a mapping of names to numbers",
    "Problem": "a problem: a mapping of what a kernel's config depends on",
    "ORDERS": "four orders of blocks: forward, backward, shuffled, interleaved at memory operations",
    "TOGETHER": "the order in which blocks step side by side, the quickest to run",
    "UNWRITTEN": "the word that stands in memory which nobody has written",
    "TIERS": "the tiers that `perf gate` measures: 0, 1, 2, 3",
}
ON_CPU, ON_GPU = {"cpp": "C++", "torch": "torch"}, {"gluon": "Gluon", "triton": "Triton", "torch": "torch"}
ROOFS = {
    "add_max": "add and max",
    "mul_add": "multiply and add",
    "mul_max": "multiply and max",
    "gather": "memory",
    "exp": "exponentials",
}


def facts(name: str) -> list[str]:
    """The rows on an op, read from its spec."""
    import tropigrad.kernels  # noqa: F401  registers the ops
    from tropigrad.kernels.contract.registry import REGISTRY

    spec = REGISTRY[name]
    rows = [
        ("dtypes", _dtypes(spec.dtypes)),
        ("on the CPU", _listed(ON_CPU[x] for x in ON_CPU if x in spec.backends)),
        ("on a GPU", _listed(ON_GPU[x] for x in ON_GPU if x in spec.backends)),
        ("forms in the tests", _forms(spec)),
        ("beside the definition", _exactness(spec)),
        ("gradient", "compared with autograd's" if spec.is_differentiable else f"none: {_cell(spec.no_gradient)}"),
        ("promises that it does not make", _left_out(spec)),
    ]
    table = ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in rows if text)]
    return table + _costs(spec)


def _listed(words: Any) -> str:
    return ", ".join(words)


def _dtypes(dtypes: Any) -> str:
    return _listed(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _forms(spec: Any) -> str:
    """The variants; after each what it lacks of the op's dtypes and backends."""
    forms = []
    for variant, kwargs in spec.variants.items():
        dtypes = [dtype for dtype in spec.dtypes if spec.supports(dtype, kwargs)]
        offered = [x for x in spec.implementations.backends if x in spec.offers(kwargs)]
        lacks = [_dtypes(dtypes)] if len(dtypes) < len(spec.dtypes) else []
        lacks += ["by " + _listed(offered)] if len(offered) < len(spec.backends) else []
        forms.append(f"`{variant}`" + (f" ({'; '.join(lacks)})" if lacks else ""))
    return _listed(forms)


def _exactness(spec: Any) -> str:
    rounded = [f"`{variant}`" for variant, kwargs in spec.variants.items() if not spec.is_exact(kwargs)]
    if not rounded:
        return "equal to the bit"
    return "within a tolerance" + (f": {_listed(rounded)}; else equal" if len(rounded) < len(spec.variants) else "")


def _left_out(spec: Any) -> str:
    """The promises left out, those of one reason together; what follows from having no gradient is said already."""
    by_reason: dict[str, list[str]] = {}
    for promise, reason in spec.left_out.items():
        if reason != spec.no_gradient:
            by_reason.setdefault(reason, []).append(f"`{promise}`")
    return "; ".join(f"{_listed(promises)}: {_cell(reason)}" for reason, promises in by_reason.items())


def _costs(spec: Any) -> list[str]:
    """The least cost of each workload at the first standard shape, in float32."""
    if not spec.workloads:
        return []
    name, shape = next(iter(spec.shapes.items()))
    sizes = _listed(f"{letter} = {size}" for letter, size in shape.items())
    rows = [
        f"| {_cell(work.name)} | {work.operations(shape):,} | {work.bytes(shape, 4):,} "
        f"| {ROOFS.get(work.mix, work.mix)} | {_listed(_cell(rival.name) for rival in work.contenders[1:])} |"
        for work in spec.workloads
    ]
    return [
        "",
        f"The least that each workload costs, in float32 at the shape `{name}` ({sizes}):",
        "",
        "| workload | steps | bytes | bounded by | timed beside |",
        "|---|---|---|---|---|",
        *rows,
    ]


def names(package: str) -> list[str]:
    """The public names of a package, each with the first sentence of its docstring."""
    module = importlib.import_module(f"tropigrad.{package}")
    rows = [f"| `{name}` | {_summary(name, getattr(module, name))} |" for name in sorted(module.__all__, key=_order)]
    return ["| name | is |", "|---|---|", *rows]


def _order(name: str) -> tuple[str, str]:
    return name.lower(), name


def _summary(name: str, thing: Any) -> str:
    text = CONSTANTS.get(name) or inspect.getdoc(thing) or ""
    if not text or (name not in CONSTANTS and not (inspect.isclass(thing) or callable(thing))):
        raise SystemExit(f"{COMMAND}: {name} has no docstring; expected one, or a line in CONSTANTS")
    return _cell(" ".join(text.split("\n\n")[0].split()))


def _cell(text: str) -> str:
    """A text as Markdown shows it unchanged in a table."""
    return re.sub(r"([|*<])", r"\\\1", text) if "`" not in text else text.replace("|", r"\|")


def launches(file: str) -> list[str]:
    """A row for each op of tier 3 of the gate's baseline, as it was updated last: what its calls cost the host."""
    figures = json.loads((ROOT / file).read_text(encoding="utf-8"))["figures"]
    environment = max(name for name in figures if name.startswith("tier 3"))
    by_op: dict[str, list[tuple[int, int]]] = {}
    for place, of_call in figures[environment].items():
        of = by_op.setdefault(place.split(",")[0], [])
        of.append((of_call["launches"], of_call["bytecode instructions"]))
    rows = ["| op | launches a call | bytecode instructions a call | a launch |", "|---|---|---|---|"]
    for op, calls in sorted(by_op.items(), key=lambda item: min(count / made for made, count in item[1])):
        each = [round(count / made) for made, count in calls]
        columns = ([made for made, _ in calls], [count for _, count in calls], each)
        rows.append(f"| {op} | {' | '.join(map(_range, columns))} |")
    return [f"Of {environment.removeprefix('tier 3, ')}:", "", *rows]


def _range(numbers: list[int]) -> str:
    return f"{min(numbers):,}" if min(numbers) == max(numbers) else f"{min(numbers):,} to {max(numbers):,}"


def proof(of: str) -> list[str]:
    """What was proven of each kernel, or of the kinds of kernels, without a device and with one."""
    table = json.loads((ROOT / "tests" / "kernels" / "compiled_kernels.json").read_text(encoding="utf-8"))
    kernels = table["kernels"]
    if of == "kernels":
        rows = [
            f"| `{name}` | {row['cases']:,} | {row['launches']:,} | {row['blocks']:,} "
            f"| {'all four' if row['orders'] else 'together'} |"
            for name, row in kernels.items()
        ]
        return [
            "| kernel | cases | launches | blocks of the largest | orders of blocks |",
            "|---|---|---|---|---|",
            *rows,
        ]
    gluon = [row for name, row in kernels.items() if name.endswith("_gluon_kernel")]
    portable = [row for name, row in kernels.items() if not name.endswith("_gluon_kernel")]

    def run(rows: list[dict[str, Any]]) -> str:
        return (
            f"[its PTX, interpreted](docs/proof.md): {len(rows)} kernel{'s' * (len(rows) > 1)}, "
            f"{sum(row['launches'] for row in rows):,} launches equal to the definition, without a race"
        )

    return [
        "| kernel | verified on a device | verified without one |",
        "|---|---|---|",
        "| C++ (CPU) | x86-64 with AVX-512, and with AVX2 (AMD, Zen 3) | – |",
        f"| Triton (any GPU) | **none yet** | values: Triton's interpreter, and {run(portable)}; machine code for "
        "sm_80, sm_90, sm_100 and AMD's gfx942: tested defaults without spills |",
        f"| Gluon (NVIDIA ≥ 8.0; off unless forced or qualified) | **none yet** | values: {run(gluon)}; machine code: "
        "[instructions a step](tests/kernels/gluon_costs.json), no spills at the defaults |",
        "| torch (no compiler) | x86-64 | – |",
    ]


TABLES: dict[str, Callable[[str], list[str]]] = {
    "facts": facts,
    "names": names,
    "launches": launches,
    "proof": proof,
}


def written(page: str) -> str:
    """The page with its tables as the code is now."""

    def table(place: re.Match[str]) -> str:
        kind, name = place.groups()
        begin, end = (f"<!-- {kind} of {name}: {edge} -->" for edge in ("begin", "end"))
        return "\n".join([begin, "", *TABLES[kind](name), "", end])

    return PLACE.sub(table, page)


def main() -> int:
    options = argparse.ArgumentParser(
        description="Writes the tables that follow from the code into the pages of docs/."
    )
    options.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page is out of date")
    check, stale = options.parse_args().check, []
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if before != after:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: the tables are not of this code; run: {COMMAND}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
