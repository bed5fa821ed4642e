"""The options that every layer with a hard threshold has: they are checked when it is made, and shown."""

from __future__ import annotations

from typing import Any

from ...kernels.hard_threshold import checked_options


class ThresholdOptions:
    """A mixin for modules: keeps the options of `hard_threshold`.

    Attributes:
        kind, steps, rule, weighted, save, pool: as in `hard_threshold`.
    """

    kind: str
    steps: int | None
    rule: str | None
    weighted: bool
    save: str
    pool: int | None

    def _keep_options(self, kind: Any, steps: Any, rule: Any, weighted: Any, save: Any, pool: Any) -> None:
        """
        Raises:
            TypeError, ValueError: an option is of another type, unknown, or does not fit the others.
        """
        self.kind, _, rule = checked_options(kind, steps, rule, weighted, save, pool, op=type(self).__name__)
        self.steps, self.rule = steps, rule or None
        self.weighted, self.save, self.pool = weighted, save, pool

    def _options(self) -> dict[str, Any]:
        """The arguments of `hard_threshold`."""
        return {name: getattr(self, name) for name in ("kind", "steps", "rule", "weighted", "save", "pool")}

    def _shown_options(self, *names: str) -> str:
        """The options of these names and those that are unusual, for a repr."""
        usual = {"weighted": True, "save": "auto", "pool": None}
        shown = [*names, *(name for name in usual if getattr(self, name) != usual[name])]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
