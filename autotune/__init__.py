"""Per-GPU tuning: which config a kernel runs with, and where that choice came from. Knows no kernel.

A kernel declares what can be tuned (`Space`) and a default (`Tuned`); a call asks `Tuned.choice(problem, device)`,
which looks in this order: an override in force, the user's cache, the table shipped for this GPU, then one for its
compute capability, and last the default.
"""

from .device import Fingerprint, fingerprint
from .space import Config, Space
from .store import Store, cache_dir, store
from .tuned import Choice, Tuned, override, recorded

__all__ = [
    "Choice",
    "Config",
    "Fingerprint",
    "Space",
    "Store",
    "Tuned",
    "cache_dir",
    "fingerprint",
    "override",
    "recorded",
    "store",
]
