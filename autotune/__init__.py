"""Per-GPU tuning: which config a kernel runs with, and where that choice came from. Knows no kernel.

A kernel declares what can be tuned (`Space`) and a default (`Tuned`); a call asks `Tuned.choice(problem, device)`,
which looks in this order: an override in force, the user's cache, the table shipped for this GPU, then one for its
compute capability, and last the default. Nothing is ever tuned unless it is asked for: by `tune(op, shapes)`, by
`with mode("tune")`, or by TROPIGRAD_AUTOTUNE=tune.
"""

from .cache import Entry, Store, cache_dir, store
from .contest import DeviceLost, Finding, Task, WrongDefault, search
from .device import Fingerprint, capturing, fingerprint, why_lost
from .explanation import Explanation, explain
from .keys import Problem, source_hash
from .machine.cost import NOMINAL, Ceilings, Launch, MachineCode, Prediction, Work, predict
from .ranks import RanksDiffer, synchronise
from .scope import Choice, mode, observed, on_scope, override, recorded, unremembered
from .shipped import export
from .space import Config, Limits, Needs, Space
from .tunable import TUNABLE, Call, Tunable, register
from .tuned import Tuned, on_reload, reload
from .tuning import tune, warm_up

__all__ = [
    "NOMINAL",
    "TUNABLE",
    "Call",
    "Ceilings",
    "Choice",
    "Config",
    "DeviceLost",
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
    "why_lost",
]
