"""Draws the imports of the package into docs/architecture.md: `python docs/draw_imports.py`.

A diagram is a fenced block of mermaid, which GitHub draws, between two comments of the page:

    <!-- imports of house: begin -->   <!-- imports of house: end -->

grimp reads the imports, also those inside functions. It comes with import-linter: pip install 'tropigrad[dev]'.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
COMMAND = "python docs/draw_imports.py"
MOST_NODES = 25  # that a reader can take in

Graph = Mapping[str, set[str]]  # a node -> the nodes that it imports from

# the floors, from the top, and the rooms of each: its name in the diagram, and what lives there
HOUSE = {
    "src/tropigrad/cli": {"cli": "the tropigrad command"},
    "perf_reports": {
        "reporting": "the commands: report, qualify, tune, doctor",
        "studies": "studies: one experiment a system",
        "gate": "gate: anybody's kernels, held to a baseline",
        "ptx": "ptx: compiled kernels run without a GPU",
        "page": "page: figures, rooflines",
        "measuring": "measuring: times, memory, ceilings",
        "records": "records, data, environment, …",
    },
    "nn, optim": {
        "nn": "nn: layers, losses",
        "optim": "optim: the public names",
        "l1_continuation": "optim/l1_continuation",
        "path_space": "optim/path_space",
        "sparse_max_plus": "optim/sparse_max_plus",
        "target_propagation": "optim/target_propagation",
        "worst_sample": "optim/worst_sample",
        "distributed": "optim/distributed",
    },
    "kernels": {
        "ops": "the ops",
        "contract": "contract: what an op declares",
        "mathematics": "mathematics: semirings, networks",
        "runtime": "runtime: how a call reaches its kernel",
    },
    "autotune": {"autotune": "which config a kernel runs with"},
    "src/tropigrad": {"triton_or_stub": "triton_or_stub", "version": "version", "whole_files": "whole_files"},
}
# of perf_reports, where each file that is no command is among the records
_FOLDERS = ("studies", "gate", "ptx", "page", "measuring")
_COMMANDS = ("report", "qualify", "tune", "doctor")


def room(module: str) -> str:
    """The room of HOUSE that a module is in; "" for the package itself, which imports everything when asked for it."""
    folder, *rest = (*module.split(".")[1:], "", "")
    first = rest[0]
    if folder == "__main__":
        return "cli"
    if folder == "perf_reports":
        return first if first in _FOLDERS else "reporting" if first in _COMMANDS else "records" if first else ""
    if folder == "kernels":
        return first if first in HOUSE[folder] else "ops"  # kernels/__init__.py lists them
    return first or folder if folder == "optim" else folder


def module_of_autotune(module: str) -> str:
    """The file of autotune/, or its folder machine/; "" for what lies elsewhere, and for the list of exports."""
    _, folder, name, *_ = (*module.split("."), "", "")
    return name if folder == "autotune" else ""


def imports(node_of: Callable[[str], str]) -> Graph:
    """The imports between nodes, each a group of modules."""
    if str(ROOT / "src") not in sys.path:
        sys.path.insert(0, str(ROOT / "src"))  # this checkout, whatever is installed
    import grimp

    graph = grimp.build_graph("tropigrad", cache_dir=None)
    edges: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        if node := node_of(module):
            edges[node] |= {node_of(other) for other in graph.find_modules_directly_imported_by(module)} - {"", node}
    return edges


def reachable(graph: Graph, start: str) -> set[str]:
    """Everything that a node imports, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        fresh = graph.get(waiting.pop(), set()) - seen
        seen |= fresh
        waiting += fresh
    return seen


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others: a → c where a → b and b → c are drawn.

    Raises:
        SystemExit: the nodes import each other in a circle.
    """
    if circle := [node for node in graph if node in reachable(graph, node)]:
        raise SystemExit(f"{COMMAND}: {', '.join(circle)} import each other in a circle; expected none")
    return {
        node: {far for far in near if not any(far in reachable(graph, other) for other in near - {far})}
        for node, near in graph.items()
    }


def house() -> list[str]:
    """The rooms of the whole package, floor by floor."""
    graph, names = imports(room), [name for rooms in HOUSE.values() for name in rooms]
    unnamed = sorted(({*graph}.union(*graph.values())) - {*names})
    if unnamed:
        raise SystemExit(f"{COMMAND}: {', '.join(unnamed)} is in no floor; expected it in HOUSE")
    lines = ["flowchart TD"]
    for number, (floor, rooms) in enumerate(HOUSE.items()):
        lines.append(f'  subgraph floor{number}["{floor}"]')
        lines += [f'    {name}["{label}"]' for name, label in rooms.items()]
        lines.append("  end")
    return lines + _arrows(reduced(graph), names)


def autotune() -> list[str]:
    """The files of autotune/."""
    graph = imports(module_of_autotune)
    names = sorted({*graph}.union(*graph.values()), key=lambda name: (-len(reachable(graph, name)), name))
    return ["flowchart TD", *_arrows(reduced(graph), names)]


def _arrows(graph: Graph, names: list[str]) -> list[str]:
    if len(names) > MOST_NODES:
        raise SystemExit(f"{COMMAND}: {len(names)} nodes; expected at most {MOST_NODES}: group some")
    targets = {node: [name for name in names if name in graph.get(node, ())] for node in names}
    return [f"  {node} --> {' & '.join(near)}" for node, near in targets.items() if near]


DIAGRAMS = {"house": house, "autotune": autotune}


def drawn(page: str) -> str:
    """The page with its diagrams as the imports are now."""
    for name, lines in DIAGRAMS.items():
        begin, end = (f"<!-- imports of {name}: {edge} -->" for edge in ("begin", "end"))
        block = "\n".join([begin, "```mermaid", *lines(), "```", end])
        page, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, page, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"{PAGE.name} has {count} places for {name}; expected one: {begin} … {end}")
    return page


def main() -> int:
    options = argparse.ArgumentParser(description="Draws the imports of the package into docs/architecture.md.")
    options.add_argument("--check", action="store_true", help="write nothing; end with 1 where the page is out of date")
    before = PAGE.read_text(encoding="utf-8")
    after = drawn(before)
    if not options.parse_args().check:
        PAGE.write_text(after, encoding="utf-8")
        return 0
    if before != after:
        print(f"{PAGE.name} does not show the imports of now; run: {COMMAND}")
        print(
            *difflib.unified_diff(before.splitlines(), after.splitlines(), "page", "imports", n=0, lineterm=""),
            sep="\n",
        )
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
