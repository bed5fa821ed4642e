"""Shared by the commands: how they tell their progress, and how they refuse a request."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)
StageProgress = Callable[[str, int, int, str], None]  # (stage, done, total, what is being done)


class BadRequest(ValueError):
    """A name or a variable that means nothing, or a folder that holds another run; the message says what to do."""
