"""What people type, Python's names and the command line's, listed in public_names.txt: a change shows in review.

Where a change is meant, `python tests/test_public_names.py` writes the list anew.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LISTED = Path(__file__).with_suffix("").with_name("public_names.txt")
MODULES = (
    "tropigrad",
    "tropigrad.autotune",
    "tropigrad.kernels",
    "tropigrad.nn",
    "tropigrad.nn.onnx",
    "tropigrad.optim",
    "tropigrad.perf_reports.gate",
    "tropigrad.perf_reports.ptx",
)


def names() -> Iterator[str]:
    """Each public name with its signature; of classes, each public method and property."""
    for module in map(importlib.import_module, MODULES):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            yield f"{module.__name__}.{name}{_signature(thing)}"
            for member, what in sorted(_members(thing).items()):
                if not member.startswith("_"):
                    yield f"{module.__name__}.{name}.{member}{_signature(what)}"


def _members(thing: Any) -> dict[str, Any]:
    """What a class of ours has from our classes: torch.optim puts a wrapped `step` into each class that it meets."""
    ours = [cls for cls in reversed(getattr(thing, "__mro__", ())) if cls.__module__.startswith("tropigrad.")]
    return {name: what for cls in ours for name, what in vars(cls).items()}


def _signature(thing: Any) -> str:
    """The parameters' names, and = where they have a default: how annotations print differs between Pythons."""
    if isinstance(thing, staticmethod | classmethod):
        thing = thing.__func__
    try:
        parameters = inspect.signature(thing).parameters.values() if callable(thing) else None
    except ValueError:  # of what is built in
        parameters = None
    if parameters is None:
        return ""
    return f"({', '.join(p.name + '=' * (p.default is not p.empty) for p in parameters)})"


def commands() -> Iterator[str]:
    """Each command of `tropigrad` with its help, and each of its parameters with theirs."""
    typer = pytest.importorskip("typer", reason="the command line needs typer")
    app = importlib.import_module("tropigrad.cli").app
    yield from _command("tropigrad", typer.main.get_command(app))


def _command(path: str, command: Any) -> Iterator[str]:
    yield f"$ {path}: {_line(command.help)}"
    for parameter in command.params:
        if parameter.name not in ("help", "install_completion", "show_completion"):
            options = "/".join((*parameter.opts, *parameter.secondary_opts))
            yield f"$ {path} {options}: {_line(getattr(parameter, 'help', ''))}"
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", below)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def test_public_names_and_the_command_line_are_as_listed():
    listed, now = LISTED.read_text().splitlines(), [*names(), *commands()]
    gone, new = [x for x in listed if x not in now], [x for x in now if x not in listed]
    assert not gone, f"gone from what people type: {gone}"
    assert not new, f"new, and not in {LISTED.name}: {new}"


if __name__ == "__main__":
    LISTED.write_text("".join(f"{line}\n" for line in [*names(), *commands()]))
    print(f"{LISTED.name}: written", file=sys.stderr)
