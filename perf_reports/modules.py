"""Modules of the user that register ops of their own: `tropigrad report --module mine.py` measures these as well."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import autotune
from ..kernels.contract.registry import REGISTRY
from .commands import BadRequest

_loaded: set[Path] = set()


def load(names: Sequence[str]) -> list[str]:
    """Import modules that register ops, each once in a process; returns their names, those of files as whole paths.

    Args:
        names: paths of Python files, whose folder is searched for what they import, or dotted names, which the working
            directory is searched for as well.
    Raises:
        BadRequest: one is missing, raises, or registers no op; the message names it.
    """
    whole = []
    for name in names:
        path = Path(name).resolve() if name.endswith(".py") or "/" in name else None
        whole.append(str(path or name))
        if path in _loaded or (path is None and name in sys.modules):
            continue
        if path is not None and not path.is_file():
            raise BadRequest(f"--module {name}: no such file; expected a Python file, or the dotted name of a module")
        _registered(name, path)
        if path is not None:
            _loaded.add(path)
    return whole


def _registered(name: str, path: Path | None) -> None:
    before = set(REGISTRY)
    sys.path.insert(0, str(path.parent if path else Path.cwd()))
    try:
        if path is None:
            importlib.import_module(name)
        else:
            _run(path)
    except (Exception, SystemExit) as error:
        for op in set(REGISTRY) - before:  # half a module is none
            del REGISTRY[op], autotune.TUNABLE[op]
        raise BadRequest(f"--module {name}: it raises {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if set(REGISTRY) == before:
        raise BadRequest(
            f"--module {name}: it registers no op; expected a call of tropigrad.kernels.contract.registry.register"
        )


def _run(path: Path) -> None:
    """Import a file as a module of its own name, under which pickle and torch.compile find it."""
    if (there := sys.modules.get(path.stem)) is not None:
        raise ImportError(f"a module {path.stem!r} is loaded already, from {getattr(there, '__file__', None)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
