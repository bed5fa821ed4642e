"""What a config is stored under: the kernel's name, a hash of its source, and its problem with sizes rounded up."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Problem = Mapping[str, int | str | bool]  # {"M": 256, "N": 512, "K": 512, "dtype": "torch.float32"}


def bucket(problem: Problem) -> dict[str, int | str | bool]:
    """Sizes rounded up to a power of two; everything else as it is."""
    return {
        name: 1 << (value - 1).bit_length() if type(value) is int and value > 0 else value
        for name, value in problem.items()
    }


@functools.cache
def source_hash(source: Path) -> str:
    """Of what makes a kernel what it is: its file, and the files that it includes by name.

    Of a Python file the declarations `X = Tuned(...)` are left out: one more config in a space changes no kernel, and
    is to retune nothing but itself.
    """
    if source.suffix == ".py":
        text = source.read_text()
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _name(node.value) == "Tuned":
                first, last = node.lineno - 1, node.end_lineno or node.lineno
                lines[first:last] = [""] * (last - first)
        content = "".join(lines).encode()
    else:
        content = source.read_bytes()
        for name in re.findall(rb'^\s*#\s*include\s+"([^"]+)"', content, re.MULTILINE):
            content += source_hash((source.parent / name.decode()).resolve()).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def canonical(value: Any) -> str:
    """One text for equal keys or configs."""
    return json.dumps(value, sort_keys=True)
