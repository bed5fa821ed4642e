"""A front as one file: points, weights and names, in what torch.load reads with weights_only=True."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...whole_files import replace
from .weights import State

_KIND, _VERSION = "tropigrad ParetoFront", 1
_KEYS = {"points": list, "states": list, "penalized": (list, type(None)), "parameters": (list, type(None))}


def save(
    path: str | os.PathLike,
    *,
    points: list[dict[str, Any]],
    states: Sequence[State | None],
    penalized: Iterable[str] | None,
    parameters: Iterable[str] | None,
) -> Path:
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "points": points,
        "states": list(states),
        "penalized": None if penalized is None else sorted(penalized),
        "parameters": None if parameters is None else sorted(parameters),
    }
    return replace(path, lambda fresh: torch.save(content, fresh))


def read(path: str | os.PathLike, fields: Mapping[str, bool]) -> dict[str, Any]:
    """The arguments of the `save` that wrote a file.

    Args:
        fields: those that a point may have, and whether it must.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"ParetoFront.open: {path} {what}; expected a file that ParetoFront.save wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in as many ways as there are ways of breaking a file
        raise ValueError(
            f"ParetoFront.open: {path} cannot be read ({type(error).__name__}): it is damaged, or no file that "
            "ParetoFront.save wrote"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        what = f"a dict with {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) else type(content)
        raise ValueError(f"ParetoFront.open: {path} holds {what}; expected a file that ParetoFront.save wrote")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"ParetoFront.open: {path} is of version {content.get('version')}; this tropigrad reads {_VERSION}: "
            "install the one that wrote it, or a later one"
        )
    whole = all(isinstance(content.get(key), kind) for key, kind in _KEYS.items())
    if not whole or len(content["points"]) != len(content["states"]):
        raise ValueError(f"ParetoFront.open: {path} is damaged: it has not one state for every point")
    odd = {name for point in content["points"] for name in point} - {*fields}
    if odd:
        raise ValueError(
            f"ParetoFront.open: {path} has points with {', '.join(sorted(odd))}, which this tropigrad does not know; "
            "install the one that wrote it"
        )
    absent = {name for point in content["points"] for name in fields if fields[name] and name not in point}
    if absent:
        raise ValueError(f"ParetoFront.open: {path} is damaged: a point lacks {', '.join(sorted(absent))}")
    return content
