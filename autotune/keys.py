"""The key that a config is stored under: the kernel's name, a hash of its source, its problem with sizes rounded up."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
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
    """A hash of what a kernel is made of: its file, and the files that its code is taken from, followed through.

    C++: the files that are included by name.
    Python: the files that are imported relatively, if they define jitted functions (`@triton.jit`, `@gluon.jit`), or a
    constant that jitted code reads. What the host's code alone imports is left out: checks, backends, the tuner. An
    edit there changes no kernel, and would retune all of them.

    Declarations `X = Tuned(...)` are left out of every Python file: one more config in a space changes no kernel, and
    is to retune nothing but itself.
    """
    if source.suffix == ".py":
        content = "".join(_without_declarations(text) for text in _python_parts(source)).encode()
    else:
        content = source.read_bytes() + "".join(map(source_hash, _included(source))).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def with_included(source: Path) -> list[Path]:
    """A C++ source and the files that it includes by name, followed through, each once; those that are there."""
    paths = [source]
    for path in paths:  # which grows
        paths += [part for part in dict.fromkeys(_included(path)) if part not in paths and part.is_file()]
    return paths


def _included(source: Path) -> list[Path]:
    names = re.findall(rb'^\s*#\s*include\s+"([^"]+)"', source.read_bytes(), re.MULTILINE)
    return [(source.parent / name.decode()).resolve() for name in names]


def canonical(value: Any) -> str:
    """One text for equal keys or configs."""
    return json.dumps(value, sort_keys=True)


def _without_declarations(text: str) -> str:
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _name(node.value.func) == "Tuned":
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            lines[first:last] = [""] * (last - first)
    return "".join(lines)


def _name(node: ast.expr) -> str:
    """The last name of `f`, `module.f`."""
    return getattr(node, "id", getattr(node, "attr", ""))


_JITTED = re.compile(r"^@(\w+\.)?(jit|constexpr_function)\b", re.MULTILINE)


def _python_parts(source: Path) -> list[str]:
    """The texts of a Python file and of those that its jitted code is taken from, each once."""
    texts = {source: source.read_text()}
    wanted: dict[Path, set[str]] = {source: set()}  # by the files that import from it
    waiting = [source]
    while waiting:
        path = waiting.pop()
        body = ast.parse(texts[path]).body
        read = _with_their_values(wanted[path] | _read_by_jitted_code(body), body)
        for target, name, binding in _relative_imports(path, body):
            if target not in texts:
                text = target.read_text()
                if not (_JITTED.search(text) or (binding in read and (not name or _binds(ast.parse(text).body, name)))):
                    continue
                texts[target], wanted[target] = text, set()
                waiting.append(target)
            # a constant may be passed on, from a file further off
            if binding in read and name not in wanted[target]:
                wanted[target].add(name)
                waiting.append(target)
    return list(texts.values())


def _read_by_jitted_code(body: list[ast.stmt]) -> set[str]:
    """The names that a file's jitted functions read."""
    read: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef):
            decorators = [x.func if isinstance(x, ast.Call) else x for x in node.decorator_list]
            if {"jit", "constexpr_function"} & {*map(_name, decorators)}:
                read |= _names(node)
    return read


def _with_their_values(names: set[str], body: list[ast.stmt]) -> set[str]:
    """Names, and those that a file's constants of these names are made of."""
    assigned = list(_assignments(body))
    before = -1
    while len(names) > before:
        before = len(names)
        names = names.union(*(_names(value) for targets, value in assigned if targets & names))
    return names


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[set[str], ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign):
            yield set().union(*map(_names, node.targets)), node.value
        elif isinstance(node, ast.AnnAssign) and node.value:
            yield _names(node.target), node.value


def _names(node: ast.AST) -> set[str]:
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}


def _binds(body: list[ast.stmt], name: str) -> bool:
    """Whether a file defines a name, or imports it relatively."""
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.level]
    passed_on = {alias.asname or alias.name for node in imports for alias in node.names}
    return name in defined.union(passed_on, *(targets for targets, _ in _assignments(body)))


def _relative_imports(path: Path, body: list[ast.stmt]) -> Iterator[tuple[Path, str, str]]:
    """(file, the name in it or "" for the whole of it, the name that the import binds) of each relative import."""
    for node in body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = [path, *path.parents][node.level].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            for place, name in ((folder / alias.name, ""), (folder, alias.name)):
                files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
                file = next((file for file in files if file.is_file()), None)
                if file:
                    yield file, name, alias.asname or alias.name
                    break
