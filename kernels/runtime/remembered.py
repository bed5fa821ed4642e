"""Remembers what the host works out for a launch, by what it depends on: once worked out, it is one look-up away.

A grid, a config and the constants of a kernel follow from shapes, strides, dtypes and options. A call like an earlier
one need not work them out again: the interpreter's time for that is longer than a small kernel's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from ... import autotune
from ...autotune.scope import default_mode
from ...autotune.tuned import MOST_REMEMBERED

_Answer = TypeVar("_Answer")
_kept: list[dict[tuple[Hashable, ...], Any]] = []  # of every function
_open_scopes = 0


def remembered(work_out: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """Has a function of hashable arguments, which asks for configs, remember its answers; they are not to be changed.

    Inside a block that may change a config, and where calls tune, every call works its answer out. A block's end, and
    `autotune.reload`, forget all answers.
    """
    kept: dict[tuple[Hashable, ...], _Answer] = {}
    _kept.append(kept)

    @functools.wraps(work_out)
    def answer(*key: Any) -> _Answer:
        if _open_scopes or default_mode() == "tune":
            return work_out(*key)
        known = kept.get(key)
        if known is None:
            known = work_out(*key)
            if len(kept) >= MOST_REMEMBERED:
                kept.clear()
            kept[key] = known
        return known

    return answer


def _forget() -> None:
    for of_a_function in _kept:
        of_a_function.clear()


def _scope(change: int) -> None:
    global _open_scopes
    with _counting:
        _open_scopes += change
    _forget()


_counting = threading.Lock()
autotune.on_reload(_forget)
autotune.on_scope(_scope)
