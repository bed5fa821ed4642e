"""The same configs on every rank: one tunes, all wait, all read, and a difference is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from .cache import store
from .device import default_device, fingerprint
from .keys import canonical
from .shipped import tables
from .tuned import reload


class RanksDiffer(RuntimeError):
    """Ranks would launch the same kernel with different configs; the message names the keys."""


def synchronise(
    tune: Callable[[], Any] | None = None, *, device: torch.device | None = None, group: dist.ProcessGroup | None = None
) -> None:
    """Rank 0 tunes; then every rank reads the configs again and compares them with the others'.

    A collective call: every rank of the group makes it. The others wait, for as long as the group's timeout lets them.

    Args:
        tune: what rank 0 is to do, `lambda: list(autotune.tune("tropical_matmul"))`; None: only read and compare.
        device: whose configs; by default the GPU where there is one, else the CPU.
        group: by default all ranks.

    Raises:
        RanksDiffer: configs, shipped tables or environments are not the same everywhere; the message names them.
        RuntimeError: torch.distributed is not initialised; or rank 0 failed, in whose words the message is.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("autotune.synchronise: torch.distributed is not initialised; call init_process_group first")
    failure = ""
    if tune is not None and dist.get_rank(group) == 0:
        try:
            tune()
        except Exception as error:  # told to all, for they wait
            failure = f"{type(error).__name__}: {error}"
    everywhere: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everywhere, failure, group)  # a barrier as well
    if any(everywhere):
        raise RuntimeError(f"autotune.synchronise: rank 0 failed to tune: {next(filter(None, everywhere))}")
    reload()
    dist.all_gather_object(everywhere, _configs(device or default_device()), group)
    differing = [name for name in sorted(set().union(*everywhere)) if len({of.get(name) for of in everywhere}) > 1]
    if differing:
        listed = "".join(f"\n  {name}: {', '.join(str(of.get(name)) for of in everywhere)}" for name in differing)
        raise RanksDiffer(
            f"autotune.synchronise: {len(differing)} keys differ between ranks 0 to {len(everywhere) - 1}; expected "
            f"one TROPIGRAD_CACHE_DIR that all share, and the same software and devices:{listed}"
        )


def _configs(device: torch.device) -> dict[str, str]:
    """Everything that a choice depends on, as text: comparable between processes."""
    environment = fingerprint(device)
    shared = {"environment": canonical(vars(environment)), "shipped tables": canonical(tables())}
    return shared | {canonical(entry.key): canonical(entry.config) for entry in store().whole(environment)}
