"""tropigrad: kernels, layers and optimizers for networks that dense backprop serves badly.

Everything is loaded at first use, so ``import tropigrad`` costs no more than reading this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__

_SUBPACKAGES = ("autotune", "kernels", "nn", "optim", "perf_reports")

__all__ = ["__version__", "autotune", "kernels", "nn", "optim", "perf_reports"]

if TYPE_CHECKING:
    from . import autotune, kernels, nn, optim, perf_reports


def __getattr__(name: str):
    if name not in _SUBPACKAGES:
        raise AttributeError(f"module 'tropigrad' has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}")
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise ImportError(
            f"tropigrad.{name} was not found: in a checkout, src/tropigrad/{name} must be a symbolic link to {name}/. "
            "Where git wrote the links as text files, run: git config core.symlinks true && git checkout -- src"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
