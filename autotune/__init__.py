"""Per-GPU tuning: which config a kernel runs with, and where that choice came from. Knows no kernel.

A kernel declares what can be tuned (`Space`) and a default (`Tuned`); a call asks `Tuned.choice(problem, device)`,
which looks in this order: an override in force, the user's cache, the table shipped for this GPU, then one for its
compute capability, and last the default. Nothing is ever tuned unless it is asked for: by `tune(op, shapes)`, by
`with mode("tune")`, or by TROPIGRAD_AUTOTUNE=tune.
"""

from .cost import NOMINAL, Ceilings, Launch, MachineCode, Prediction, Work, predict
from .device import Fingerprint, fingerprint
from .explanation import Explanation, explain
from .ranks import RanksDiffer, synchronise
from .search import Finding, Task, WrongDefault, search
from .space import Config, Limits, Needs, Space
from .store import Entry, Store, cache_dir, export, store
from .tunable import TUNABLE, Call, Tunable, register, tune, warm_up
from .tuned import (
    Choice,
    Problem,
    Tuned,
    capturing,
    mode,
    observed,
    on_reload,
    on_scope,
    override,
    recorded,
    reload,
    source_hash,
    unremembered,
)

__all__ = [
    "NOMINAL",
    "TUNABLE",
    "Call",
    "Ceilings",
    "Choice",
    "Config",
    "Entry",
    "Explanation",
    "Finding",
    "Fingerprint",
    "Launch",
    "Limits",
    "MachineCode",
    "Needs",
    "Prediction",
    "Problem",
    "RanksDiffer",
    "Space",
    "Store",
    "Task",
    "Tunable",
    "Tuned",
    "Work",
    "WrongDefault",
    "cache_dir",
    "capturing",
    "explain",
    "export",
    "fingerprint",
    "mode",
    "observed",
    "on_reload",
    "on_scope",
    "override",
    "predict",
    "recorded",
    "register",
    "reload",
    "search",
    "source_hash",
    "store",
    "synchronise",
    "tune",
    "unremembered",
    "warm_up",
]
