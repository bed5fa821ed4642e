"""The frame of walks along a front: epochs, points, a checkpoint to go on from, and the way out of an error."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.runtime.ranks import of_ranks
from ..distributed import check_equal, check_whole, data_parallel, from_first, rank_in
from .checkpoint import Checkpoint, random_state, seed_generators, set_random_state
from .correctors import Corrector
from .epochs import Epochs, NotFinite
from .front import ParetoFront, Point
from .parameters import Parameters

_CHECKPOINT_SECONDS = 5.0

Progress = Callable[[int, int, str], None]  # (points reached, points in all, the epoch for people)


class Tracer(ABC):
    """A walk along the front of loss and ℓ¹ norm, an epoch at a time.

    A subclass moves by `_advance`, and keeps where it is in `position`, of plain numbers and strings, and in
    what `_extra` gives.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Tensor], penalize: Callable[[str], bool] | None, seed: int
    ) -> None:
        self.where = type(self).__name__
        self.model, self.group = data_parallel(model)
        self.loss_fn, self.seed = loss_fn, seed
        check_whole(self.where, self.model)
        self.weights = Parameters(self.where, self.model, penalize)
        self.epochs = Epochs(self.where, model, loss_fn, self.weights.device, self.model, self.group)
        self.front = self._new_front()
        self.position: dict[str, Any] = {}
        self.corrector: Corrector
        self.count = 0  # of epochs
        self.seconds = 0.0

    # -------------------------------------------------------------------------------------------- of a subclass

    @abstractmethod
    def _settings(self) -> dict[str, Any]: ...

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _advance(self) -> float: ...  # an epoch; returns its mean loss

    @property
    def _is_done(self) -> bool:
        return self.position["phase"] == "done"

    @property
    @abstractmethod
    def _points(self) -> int: ...

    def _extra(self) -> dict[str, Any]:
        """More of the state, for a checkpoint."""
        return {}

    def _load_extra(self, state: dict[str, Any]) -> None:
        """Takes it up again, after `position`; the corrector is of the right class then."""
        del state

    # -------------------------------------------------------------------------------------------- the walk

    def run(
        self,
        loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        progress: bool | Progress = True,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> ParetoFront:
        """Walks the front.

        Args:
            loader: gives batches (x, y), the same number each time that it is iterated over; a list of one batch is the
                deterministic form. loss_fn(model(x), y) is a mean over the batch.
            val_loader: as loader; its losses stand in the points as val_loss.
            progress: True prints a line for each point on stderr; a function is called after each epoch, with (points
                reached, points in all, for people: the epoch, or the point that it ended with).
            checkpoint: a folder. A run that lies there, of this model and these settings, is continued: the front is
                the same, bit for bit, as that of a run that was never interrupted.

        Under DistributedDataParallel every rank makes the call, with loaders of its own samples, which give as many
        batches an epoch on all; losses, and what is decided by them, are of all samples. The first rank alone prints,
        and reads and writes the checkpoint; as many ranks as wrote it go on bit for bit.

        Returns:
            The front, which `.front` holds too. The model has the weights of its last point.

        Raises:
            ValueError: a loss or a gradient is not finite, a loader gives no batch, or the checkpoint is of another
                model or setting. The points reached are in `.front`, and the model has the last good weights. The same
                holds for Ctrl-C, KeyboardInterrupt.
        """
        loaders = [x for x in (loader, val_loader) if x is not None]
        folder = None
        facts = {"class": self.where, "model": self.weights.fingerprint(), "seed": self.seed, **self._settings()}
        self._check_ranks(facts | {"batches of loader": _length(loader), "checkpoint": checkpoint is not None})
        if checkpoint is not None:
            folder = Checkpoint(self.where, checkpoint, facts)
        printed = _Printed() if rank_in(self.group) == 0 else _silent
        tell = printed if progress is True else progress or _silent
        outside = random.getstate()
        devices = [self.weights.device] if self.weights.device.type == "cuda" else []
        was_training = self.epochs.model.training
        try:
            with torch.random.fork_rng(devices):
                self._walk(loader, val_loader, loaders, folder, tell)
        finally:
            random.setstate(outside)
            self.epochs.model.train(was_training)
            for parameter in self.weights.parameters:
                parameter.grad = None
        return self.front

    def _walk(self, loader, val_loader, loaders, folder: Checkpoint | None, tell: Progress) -> None:
        state = from_first(self.where, lambda: folder.read() if folder else None, self.group)
        self._loader, self._val_loader, self._folder = loader, val_loader, folder
        if state is None or folder is None:
            self.front, self.count, self.seconds = self._new_front(), 0, 0.0
            seed_generators(self.seed, loaders)
            self._begin()
        else:
            self._load(state, folder, loaders)
        good = self._good_state()
        saved = time.monotonic()
        try:
            while not self._is_done:
                points, place = len(self.front), self._place()
                self._begun = time.perf_counter()
                loss = self._advance()
                self.seconds = self._elapsed()
                good = self._good_state()
                is_new = len(self.front) > points
                what = describe(self.front.points[-1]) if is_new else f"{_words(place)}: loss {loss:.4g}"
                if folder and (is_new or self._first_says(time.monotonic() - saved > _CHECKPOINT_SECONDS)):
                    state = self._state(loaders)
                    from_first(self.where, lambda state=state: folder.write(state), self.group)
                    saved = time.monotonic()
                tell(len(self.front), self._points, what)  # which may end the walk: a point is in the checkpoint then
        except NotFinite as error:
            self.model.load_state_dict(good)
            place = f"{_words(self._place())}, batch {error.batch}"
            raise ValueError(
                f"{self.where}: the {error.what} is not finite ({place}); the model has the last good weights, .front "
                f"the {len(self.front)} points reached; expected a smaller h or learning rate, or finite data"
            ) from None
        except BaseException:
            self.model.load_state_dict(good)
            raise

    def _first_says(self, answer: bool) -> bool:
        return from_first(self.where, lambda: answer, self.group)

    def _check_ranks(self, facts: dict[str, Any]) -> None:
        check_equal(self.where, of_ranks(facts, self.group), "the same model, settings and number of batches on all")

    def _place(self) -> dict[str, Any]:
        """Where the walk is, for people."""
        return {name: self.position[name] for name in ("phase", "point", "epoch")}

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._begun

    def _correct(self) -> float:
        """An epoch of the corrector; returns the mean loss."""
        self.corrector.begin()
        loss = self.epochs.train(self._loader, self.weights.parameters, self.corrector.step)
        self.corrector.end()
        self.count += 1
        return loss

    def _store(self, phase: str, lam: float) -> Point:
        """Takes in a point: the corrector's iterate."""
        self.weights.write(self.corrector.iterate())
        training = self.epochs.evaluate(self._loader)
        validation = None if self._val_loader is None else self.epochs.evaluate(self._val_loader)
        point = Point(
            loss=training.loss,
            l1=self.weights.l1(),
            nnz=self.weights.nonzeros(),
            lam=lam,
            phase=phase,
            val_loss=validation.loss if validation else None,
            val_error=validation.error if validation else None,
            accuracy=training.accuracy,
            val_accuracy=validation.accuracy if validation else None,
            epochs=self.count,
            seconds=self._elapsed(),
        )
        state = self.weights.state()
        if folder := self._folder:
            from_first(self.where, lambda: folder.write_point(len(self.front), state), self.group)
        self.front.append(point, state)
        return point

    def _new_front(self) -> ParetoFront:
        pairs = zip(self.weights.names, self.weights.penalized, strict=True)
        return ParetoFront(model=self.model, penalized=[name for name, is_penalized in pairs if is_penalized])

    # -------------------------------------------------------------------------------------------- states

    def _good_state(self) -> dict[str, Tensor]:
        """The model's state with the iterate in it, on its device."""
        state = {name: x.detach().clone() for name, x in self.model.state_dict().items()}
        state |= {n: x.clone() for n, x in zip(self.weights.names, self.corrector.iterate(), strict=True)}
        return state

    def _state(self, loaders: list[Any]) -> dict[str, Any]:
        """The contents of a checkpoint. A collective call: the random numbers of all ranks are in it."""
        first, *others = of_ranks(random_state(loaders), self.group)
        return {
            "position": self.position,
            "model": self.weights.state(),
            "corrector": self.corrector.state(),
            "extra": self._extra(),
            "points": [asdict(point) for point in self.front.points],
            "random": first,
            "random of other ranks": others,
            "count": self.count,
            "seconds": self.seconds,
        }

    def _load(self, state: dict[str, Any], folder: Checkpoint, loaders: list[Any]) -> None:
        self._begin()
        self.model.load_state_dict(state["model"])
        self.position, self.count, self.seconds = state["position"], state["count"], state["seconds"]
        self._load_extra(state["extra"])
        self.corrector.load_state(state["corrector"])
        self.front = self._new_front()
        for index, point in enumerate(state["points"]):
            weights = from_first(self.where, lambda index=index: folder.point(index), self.group)
            self.front.append(Point(**point), weights)
        randoms = [state["random"], *state.get("random of other ranks", [])]
        ranks = 1 if self.group is None else self.group.size()
        set_random_state(randoms[rank_in(self.group) if len(randoms) == ranks else 0], loaders)


def _length(loader: Any) -> int | None:
    """How many batches it says that it gives."""
    try:
        return len(loader)
    except TypeError:
        return None


def describe(point: Point) -> str:
    """A point for people, in one line."""
    accuracy = "" if point.accuracy is None else f", {point.accuracy:.1%} right"
    held_out = "" if point.val_loss is None else f", held out {point.val_loss:.4g}"
    return f"loss {point.loss:.4g}{held_out}{accuracy}, l1 {point.l1:.4g}, {point.nnz} nonzeros, lambda {point.lam:.3g}"


def _words(place: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in place.items())


def _silent(done: int, total: int, what: str) -> None:
    """No progress."""


class _Printed:
    """Progress on stderr: a line for each point."""

    def __init__(self) -> None:
        self.done: int | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.done is None:
            self.done = done if done > 1 else 0  # a run that is continued has points already
        if done > self.done:
            print(f"point {done} of {total}: {what}", file=sys.stderr, flush=True)
        self.done = done


# ------------------------------------------------------------------------------------------------ arguments


def checked_count(where: str, name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where}: {name} is {value!r}; expected an integer of at least {least}")
    return value


def checked_number(where: str, name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ValueError(f"{where}: {name} is {value!r}; expected {expected}")
    return float(value)


def checked_positive(where: str, name: str, value: Any) -> float:
    return checked_number(where, name, value, "a positive finite number", lambda x: 0 < x < math.inf)
