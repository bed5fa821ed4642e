"""Measures one tier of a declaration in a process of its own, and prints a record a line.

    python -m tropigrad.perf_reports.gate.worker FILE TIER

A process a tier, as Triton either compiles or interprets: the gate sets TRITON_INTERPRET as the tier needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from . import compiled, counted, host, unlaunched
from .declaration import Declaration, DeclarationError


def main(arguments: list[str]) -> int:
    path, tier = Path(arguments[0]), int(arguments[1])
    try:
        declaration = Declaration.read(path, tier)
    except DeclarationError as error:
        print(json.dumps({"refused": str(error)}))
        return 2

    def tell(what: str) -> None:
        print(json.dumps({"progress": what}), flush=True)

    entries = declaration.kernels if tier == 0 else [call for call in declaration.calls if tier in call.tiers]
    jobs = sum(len(kernel.targets) for kernel in declaration.kernels) if tier == 0 else len(entries)
    print(json.dumps({"jobs": jobs}), flush=True)
    if tier == 0:
        records = compiled.measure(declaration.kernels, tell)
    else:
        records = {1: counted, 2: host, 3: unlaunched}[tier].measure(declaration.calls, tell)
    for record in records:
        print(json.dumps(record), flush=True)
    print(json.dumps({"done": tier}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
