"""The ranks of a process group of torch.distributed. A group of None is one process, its own and only rank.

An exchange fails on all ranks, and with the name of the rank that is missing: where one has died, or has not come
within the group's timeout, the others hold a roll call in the group's store.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_PATIENCE = timedelta(seconds=1)  # after which a rank that waits asks whether another has given up
_ROLL_CALL_SECONDS = 10.0  # at most, and a third of the timeout
_STORE_SECONDS = 5.0  # within which a store answers
_CALLED, _HERE, _LEFT = "tropigrad/called", "tropigrad/here", "tropigrad/left"  # keys of the store


class RanksLost(ConnectionError):
    """Ranks of a process group have died, or do not answer; the message names them."""


class RankFailed(RuntimeError):
    """Another rank has failed, and said why.

    Attributes:
        rank: its number.
        words: the message of its error.
    """

    def __init__(self, where: str, rank: int, ranks: int, error: str, words: str) -> None:
        super().__init__(f"{where}: rank {rank} of {ranks} has failed: {error}: {words}")
        self.rank, self.words = rank, words


def check_group(where: str, group: Any) -> None:
    """
    Raises:
        TypeError: `group` is neither a process group nor None.
    """
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{where}: group is a {type(group).__name__}; expected a torch.distributed.ProcessGroup, or None"
        )


def of_ranks(value: T, group: dist.ProcessGroup | None, where: str = "the ranks") -> list[T]:
    """The values of all ranks, in their order. A collective call: every rank makes it.

    Raises:
        RanksLost: it failed, or a rank did not come within the group's timeout.
    """
    if group is None:
        return [value]
    values = [value] * group.size()
    try:
        dist.all_gather_object(values, value, group=group)
    except RuntimeError as error:
        raise _lost(where, group, error) from error
    return values


def on_all_ranks(where: str, group: dist.ProcessGroup | None, work: Callable[[], T]) -> T:
    """Do what each rank does alone, unless it fails on any of them: then all fail. A collective call.

    Raises:
        Exception: this rank's own.
        RankFailed: another rank has failed; in its words.
    """
    if group is None:
        return work()
    failure: Exception | None = None
    try:
        done = work()
    except Exception as error:  # told to all, for they wait
        failure = error
    told = of_ranks(None if failure is None else (type(failure).__name__, str(failure)), group, where)
    if failure is not None:
        raise failure
    for rank, refusal in enumerate(told):
        if refusal is not None:
            raise RankFailed(where, rank, len(told), *refusal)
    return done  # pyright: ignore[reportPossiblyUnbound, reportReturnType]


def exchange(where: str, group: dist.ProcessGroup, begin: Callable[[], dist.Work | None]) -> None:
    """Begin a collective call of torch.distributed, with async_op=True, and wait for it.

    Raises:
        RanksLost: it failed, or a rank did not come within the timeout that the group was made with.
    """
    finish(where, group, begun(where, group, begin))


def begun(where: str, group: dist.ProcessGroup, begin: Callable[[], dist.Work | None]) -> dist.Work | None:
    """Begin such a call, to be waited for by `finish`."""
    try:
        return begin()
    except RuntimeError as error:
        raise _lost(where, group, error) from error


def finish(where: str, group: dist.ProcessGroup, work: dist.Work | None) -> None:
    """Wait for a call that has begun."""
    start: float | None = None
    while work is not None:
        try:
            work.wait(_PATIENCE)
            return
        except RuntimeError as error:
            start = time.monotonic() - _PATIENCE.total_seconds() if start is None else start
            timeout = _timeout(group)
            is_late = time.monotonic() - start > timeout - _seconds_of_roll_call(timeout)
            # else the patience alone has run out
            if work.is_completed() or is_late or _is_called(group):
                raise _lost(where, group, error) from error


# ------------------------------------------------------------------------------------------------ the roll call


def _timeout(group: dist.ProcessGroup) -> float:
    return group.get_group_store().timeout.total_seconds()  # pyright: ignore[reportAttributeAccessIssue]


def _seconds_of_roll_call(timeout: float) -> float:
    return min(_ROLL_CALL_SECONDS, timeout / 3)


def _is_called(group: dist.ProcessGroup) -> bool:
    """Whether another rank has begun a roll call; also where the store does not answer."""
    return _within(_STORE_SECONDS, lambda: group.get_group_store().check([_CALLED]), True)


def _lost(where: str, group: dist.ProcessGroup, error: Exception) -> RanksLost:
    """Calls the roll, and words the error by the ranks that do not answer."""
    seconds = _seconds_of_roll_call(_timeout(group))
    absent = _within(seconds + _STORE_SECONDS, lambda: _absent(group, seconds), None)
    size = group.size()
    remedy = "start all ranks again, from the last checkpoint where there is one"
    if absent is None:
        return RanksLost(f"{where}: rank 0 of {size}, or the store that all ranks meet in, does not answer; {remedy}")
    if not absent:
        return RanksLost(f"{where}: all {size} ranks answer, yet they could not exchange ({error}); {remedy}")
    ranks = " and ".join(map(str, absent))
    names = f"rank {ranks} of {size} has" if len(absent) == 1 else f"ranks {ranks} of {size} have"
    return RanksLost(
        f"{where}: {names} died or hung: no answer within {seconds:.3g} s after an exchange failed; {remedy}"
    )


def _absent(group: dist.ProcessGroup, seconds: float) -> list[int]:
    """The ranks that do not answer within so many seconds."""
    store, own, ranks = group.get_group_store(), group.rank(), range(group.size())

    def missing(what: str, among: list[int], until: float) -> list[int]:
        while among := [rank for rank in among if not store.check([f"{what}/{rank}"])]:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return among

    store.set(_CALLED, "")
    store.set(f"{_HERE}/{own}", "")
    absent = missing(_HERE, [*ranks], time.monotonic() + seconds)
    store.set(f"{_LEFT}/{own}", "")
    if own == 0:  # the store may be this process's, and end with it
        missing(_LEFT, [rank for rank in ranks if rank not in absent], time.monotonic() + _STORE_SECONDS / 2)
    return absent


def _within(seconds: float, call: Callable[[], T], otherwise: T) -> T:
    """Gives what the call returns; `otherwise` where it fails or takes longer."""
    answers: list[T] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # all errors of torch.distributed are
            answers.append(call())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else otherwise


def any_rank(where: str, flag: bool, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether the flag is set on any rank. A collective call."""
    if group is None:
        return flag
    flags = torch.tensor([int(flag)], device=device)
    exchange(where, group, lambda: dist.all_reduce(flags, dist.ReduceOp.MAX, group=group, async_op=True))
    return bool(flags)
