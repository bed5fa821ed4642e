"""Subgradient descent on the worst sample, F(W) = max_n ℓ_n(W), of a linear-min-max network: W ← W − γ g.

g has a few entries, and a step changes few activations: an iteration costs O(N), not O(N q p), and gives the iterates
of dense backprop bit for bit. Mathematics, steps and sources: definition.py.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.runtime.ranks import any_rank, check_group, of_ranks, on_all_ranks
from ..distributed import check_equal, digest
from .by_cpp import DTYPES, MEMORIES, Sparse, bytes_needed, is_available
from .by_triton import LARGEST, why_not
from .checks import (
    WHERE,
    LinearMinMaxLike,
    check_choice,
    check_count,
    check_model,
    check_number,
    check_samples,
    check_share,
    check_squares,
    check_weights,
)
from .definition import DIVERGED, GOING, LOSSES, STEPS, Dense, Samples, Settings, State, Weights, beginning
from .loops import LOOPS
from .sharded import Sharded

_STATUS = ("going", "target met", "within rounding of the target", "diverged", "stationary")
_BACKENDS = {
    **dict.fromkeys(MEMORIES, "cpp"),
    "program": "triton",
    "graph": "triton",
    "launch": "triton",
    "dense": "torch",
}  # by memory
_SLICE_SECONDS = 0.2  # at the end of which Ctrl-C is heard and progress told


class Iterate(NamedTuple):
    """An iterate that was kept."""

    iteration: int
    loss: float  # F
    accuracy: float | None  # on the validation samples; None where F chose it
    weights: dict[str, Tensor]  # A, W1, W2, as in a state_dict


class WorstSample(NamedTuple):
    """A training sample, and in how many of the iterates so far it was the worst."""

    sample: int
    times: int
    share: float


class WorstSampleSubgradient:
    """Trains a linear-min-max network in place, on the sample with the largest loss, or on the worst share of them.

        F = max_n ℓ_n,    ℓ_n = max(0, max_{k≠y} (Δ + f_nk) − f_ny)  or the cross-entropy,    W ← W − γ g

    F is not convex in the weights: limit points are stationary at best, and the best iterate is kept. The model stays
    an ordinary torch module. Weights that others change between steps, by whatever way, are noticed by their values and
    taken up, by a dense evaluation; with `group`, all ranks must change them alike.

    No weight that is not finite is ever written: the step that would do so is not taken, and said (see `step`).
    `copy.deepcopy` copies the model along, as it does for torch's optimizers; with pickle, put both into one object.
    The copy goes through the same iterates, bit for bit.

    Args:
        model: anything with tensors A [p, d], W1 [q, p] and W2 [K, q], contiguous, float32 or float64 (elsewhere than
            on the CPU any floating dtype), on one device; `tropigrad.nn.LinearMinMax` is one.
        x: [N, d], the dtype and device of the weights, finite; not copied where it is contiguous and stands alone, so
            it must stay as it is.  y: [N], integer labels in [0, K).
        step: "polyak", γ = (F − L) / ‖g‖² with a level L that starts at `target` and is raised where it proves out of
            reach; "sqrt", γ = c / (‖g‖ √(t+1)); "power", γ = c / (‖g‖ (t+1)^0.6).
        memory: "winners" keeps the winner of every min and max; "trees", the paper's form, a tournament tree over the
            leaves of each, 2 N q p bytes. Same iterates. "auto" takes winners, and `why` says why. Both are of the CPU.
            On a GPU, where A is fixed, winners are kept too: by one Triton program for up to 512 samples ("program"),
            by a launch an iteration in a CUDA graph for more ("graph"), or between the ranks' exchanges ("launch").
            Elsewhere every iteration is a dense evaluation by fused products ("dense").
        group: of torch.distributed. Each rank gives its own samples, x, y and validation, and the same model; every
            rank calls every method. The iterates are those of one process with all samples in the order of the ranks,
            bit for bit; samples are numbered so, and a state_dict goes on with any number of ranks. An iteration is a
            maximum of one number and a broadcast of one sample's few entries, and a call of `step` one exchange more.
            The group's timeout, which is that of init_process_group, is how long a rank waits for the others.
        loss: "hinge" or "cross_entropy".  margin: Δ > 0, in the units of the scores.
        target: ≥ 0; a run ends when F is no larger.
        length: c, the length of the first step of "sqrt" and "power"; by default that of Polyak's.
        train_A: whether A moves; by default whether it requires a gradient. Then an iteration costs O(N (d + q)).
        validation: (x, y) of samples with no part in F: the iterate that classifies most of them rightly is kept too.
        alpha: in (0, 1]: F is the mean of the worst share α of the samples, as CVaR is: of ⌈α N⌉ of them, the last with
            the weight that is left. 1 is the mean of all; with α N ≤ 1, or None, F is the largest ℓ. With a `group`, N
            counts the samples of all ranks.

    Raises:
        TypeError, ValueError: what does not fit, and what was expected; activations of the start beyond the dtype.
        RuntimeError: another rank of `group` has failed so, in its words.
        ConnectionError: ranks have died or hung; the message names them. `step` raises it too.
        MemoryError: a memory larger than the machine's.

    Source: Enaieh & Fercoq, "Exploiting Subgradient Sparsity in Max-Plus Neural Networks", arXiv 2603.04133.
    """

    def __init__(
        self,
        model: LinearMinMaxLike,
        x: Tensor,
        y: Tensor,
        step: Literal["polyak", "sqrt", "power"] = "polyak",
        memory: Literal["auto", "trees", "winners"] = "auto",
        group: dist.ProcessGroup | None = None,
        *,
        loss: Literal["hinge", "cross_entropy"] = "hinge",
        margin: float = 1.0,
        target: float = 0.0,
        length: float | None = None,
        train_A: bool | None = None,
        validation: tuple[Tensor, Tensor] | None = None,
        alpha: float | None = None,
    ) -> None:
        check_group(WHERE, group)
        self.model, self._group, self._asked = model, group, memory
        settings, samples, weights, watched = on_all_ranks(
            WHERE,
            group,
            lambda: _prepared(model, x, y, step, memory, loss, margin, target, length, train_A, validation, alpha),
        )
        labels = samples.y[: samples.training]
        share = _Share(settings, digest(weights), samples.training, watched, labels.unique().tolist())
        shares = _shares_of_ranks(share, group)
        present = {label for each in shares for label in each.classes}
        if len(present) < 2:
            raise ValueError(f"{WHERE}: all samples are of class {present.pop()}; expected two classes or more")
        self._counts = [each.samples for each in shares]
        self._watched = sum(each.watched or 0 for each in shares)
        self._state = State(
            settings,
            samples,
            weights,
            _copied(weights),
            None if watched is None else _copied(weights),
            beginning(settings),
            torch.zeros(sum(self._counts), dtype=torch.int64, device=x.device),
        )
        self.memory, self.why = _choose(self._state, memory, is_shared=group is not None)
        self._loop = self._begun()
        self._slice = 1  # iterations between two looks at the clock
        self._loop.run(0, _trace(0))  # F at the start
        self._cached_weights = _copied(weights)  # what the caches are of
        overflows = not math.isfinite(self.loss) or not self._loop.z.isfinite().all()
        if self._on_any_rank(overflows):
            raise ValueError(
                f"{WHERE}: A x, W1 and W2 of the start add up to more than {weights.a.dtype} holds (F is "
                f"{self.loss}); expected finite activations: rescale x or the weights"
            )

    # -------------------------------------------------------------------------------------------- iterations

    def step(self, n: int = 1, progress: Callable[[int, int, float], None] | None = None) -> Tensor:
        """At most n iterations; fewer where the run ends (see `status`). Ctrl-C leaves whole iterations.

        Args:
            n: an integer, ≥ 1.
            progress: called with (iterations done, n, F) a few times a second.
        Returns:
            F after each iteration done, [≤ n] float64.
        Raises:
            FloatingPointError: F is no longer finite, or the next step would leave a weight that is not; nothing of
                that step is written. `load_best()` goes back.
            TypeError: n is no integer.  ValueError: n is less than 1; the weights have moved to other memory, or the
                ranks of `group` have changed them differently.
        """
        n = check_count(n)
        if self._has_changed():
            self._take_up()
        trace = _trace(n)
        done = 0
        while done < n and self._state.progress.status == GOING:
            asked = min(self._slice, n - done)
            start = time.perf_counter()
            is_whole = isinstance(self._loop, Sparse)  # others may be interrupted between a weight and its caches
            try:
                with torch.no_grad():
                    done += self._loop.run(asked, trace[done : done + asked])
                is_whole = True
            finally:
                if is_whole:
                    self._note_weights()
            seconds = time.perf_counter() - start
            if asked == self._slice:
                self._slice = max(1, min(2 * asked, round(asked * _SLICE_SECONDS / seconds)))
            if progress:
                progress(done, n, self.loss)
        if self._state.progress.status == DIVERGED:
            whose = self._of_whom()
            if math.isfinite(self.loss):
                raise FloatingPointError(
                    f"{WHERE}: after {self.iteration} iterations the next step{whose} would leave weights that are not "
                    f"finite in {self._state.weights.w2.dtype}, and was not taken; load_best() returns, and a smaller "
                    "length goes less far"
                )
            raise FloatingPointError(
                f"{WHERE}: F{whose} is {self.loss} after {self.iteration} iterations; load_best() returns"
            )
        return trace[:done]

    def load_best(self, by: Literal["loss", "validation"] = "loss") -> Iterate:
        """Put the model at a kept iterate: of the least F, or of the best validation accuracy."""
        check_choice("by", by, ("loss", "validation"))
        iterate = self.best if by == "loss" else self.best_validation
        self._write(iterate.weights)
        self._take_up()
        return iterate

    # -------------------------------------------------------------------------------------------- what came of it

    @property
    def loss(self) -> float:
        """F of the present iterate."""
        return self._state.progress.loss

    @property
    def iteration(self) -> int:
        return self._state.progress.iteration

    @property
    def status(self) -> str:
        """ "going", or why the run has ended: "target met", "within rounding of the target", "diverged", or
        "stationary", where the subgradients of the worst share cancel."""
        return _STATUS[self._state.progress.status]

    @property
    def best(self) -> Iterate:
        """The iterate with the least F."""
        progress = self._state.progress
        return Iterate(progress.best_iteration, progress.best_loss, None, _named(self._state.best))

    @property
    def best_validation(self) -> Iterate:
        """The first of the iterates that classify most validation samples rightly.

        Raises:
            ValueError: there are no validation samples.
        """
        state, progress = self._state, self._state.progress
        if state.best_right is None:
            raise ValueError(f"{WHERE}: no validation samples were given; expected validation=(x, y)")
        accuracy = progress.best_right / self._watched
        return Iterate(progress.best_right_iteration, progress.best_right_loss, accuracy, _named(state.best_right))

    @property
    def level(self) -> float:
        """L of Polyak's step. Above `target` where that proved out of reach, `raises` times."""
        progress = self._state.progress
        return max(self._state.settings.target, progress.best_loss - min(progress.gap, progress.best_loss))

    @property
    def raises(self) -> int:
        return self._state.progress.raises

    @property
    def worst(self) -> WorstSample:
        """The sample that was the worst most often: an outlier, or a wrong label, where its share is large."""
        times = self._state.times_worst
        sample = int(times.argmax())
        return WorstSample(sample, int(times[sample]), int(times[sample]) / max(1, int(times.sum())))

    # -------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that the next iterates depend on, and what was kept: numbers, strings and tensors."""
        state = self._state
        return {
            "settings": vars(state.settings).copy(),
            "progress": state.progress.as_dict(),
            "weights": _named(state.weights),
            "best": _named(state.best),
            "best_validation": None if state.best_right is None else _named(state.best_right),
            "times_worst": state.times_worst.clone(),
        }

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Go on as the run that `state_dict` was taken of, bit for bit; the model's weights are set too.

        Raises:
            ValueError: of another setting, other sizes, or not a state of this class. Nothing has changed then.
        """
        ours = self.state_dict()
        if not isinstance(found, dict) or found.keys() != ours.keys():
            raise ValueError(f"{WHERE}.load_state_dict: expected what state_dict() returns, with {', '.join(ours)}")
        other = [
            f"{name} is {found['settings'].get(name)!r} there and {value!r} here"
            for name, value in ours["settings"].items()
            if found["settings"].get(name) != value
        ]
        for of in ("weights", "best", "best_validation"):
            if (found[of] is None) != (ours[of] is None):
                other.append(f"{of} is missing {'there' if found[of] is None else 'here'}")
            elif found[of] is not None:
                other += [
                    f"{of}.{name} has shape {tuple(found[of][name].shape)} there and {tuple(value.shape)} here"
                    for name, value in ours[of].items()
                    if found[of][name].shape != value.shape
                ]
        if found["times_worst"].shape != ours["times_worst"].shape:
            other.append(f"{len(found['times_worst'])} samples there and {len(ours['times_worst'])} here")
        if found["progress"].keys() != ours["progress"].keys():
            other.append("progress is of another version")
        if other:
            raise ValueError(f"{WHERE}.load_state_dict: {'; '.join(other)}")
        state = self._state
        self._write(found["weights"])
        for kept, of in ((state.best, "best"), (state.best_right, "best_validation")):
            for target, name in zip(kept or (), ("A", "W1", "W2"), strict=False):
                target.copy_(found[of][name])
        state.times_worst.copy_(found["times_worst"])
        for name, value in found["progress"].items():
            setattr(state.progress, name, value)
        del self._loop  # before another takes as much memory
        self._loop = self._begun()

    def _parts(self) -> dict[str, Any]:
        """Everything but the caches, which hold addresses; copies of all that a shallow copy must not share."""
        parts = {name: value for name, value in vars(self).items() if name not in ("_loop", "_state")}
        return parts | {
            "_cached_weights": _copied(self._cached_weights),
            "samples": self._state.samples,
            "run": self.state_dict(),
        }

    def __getstate__(self) -> dict[str, Any]:
        if self._group is not None:
            raise TypeError(
                f"{WHERE}: a process group cannot be pickled; expected state_dict(), and load_state_dict() of one "
                "that every rank makes with group="
            )
        return self._parts()

    def __setstate__(self, parts: dict[str, Any]) -> None:
        samples, run = parts.pop("samples"), parts.pop("run")
        vars(self).update(parts)
        progress = beginning(settings := Settings(**run["settings"]))
        for name, value in run["progress"].items():
            setattr(progress, name, value)
        weights = Weights(*(w.detach() for w in check_weights(self.model)))
        best, best_right = (run[of] and Weights(*run[of].values()) for of in ("best", "best_validation"))
        self._state = State(settings, samples, weights, best, best_right, progress, run["times_worst"])
        # the machine that unpickles may have no compiler
        self.memory, self.why = _choose(self._state, self._asked, is_shared=self._group is not None)
        self._loop = self._begun()

    def __deepcopy__(self, memo: dict[int, Any]) -> WorstSampleSubgradient:
        memo[id(self._group)] = self._group  # the ranks stay the same
        twin = memo[id(self)] = object.__new__(type(self))
        twin.__setstate__(copy.deepcopy(self._parts(), memo))
        return twin

    # -------------------------------------------------------------------------------------------- the model's weights

    def _write(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for target, name in zip(self._state.weights, ("A", "W1", "W2"), strict=True):
                target.copy_(weights[name])
        self._note_weights()

    def _begun(self) -> Dense | Sparse:
        own = LOOPS.functions[_BACKENDS[self.memory]](self._state, self.memory)
        return own if self._group is None else Sharded(self._state, own, self._group, self._counts)

    def _note_weights(self) -> None:
        """Notes that the caches are of the present weights, and tells autograd that these have changed."""
        torch.autograd.graph.increment_version((self.model.A, self.model.W1, self.model.W2))
        for cached, w in zip(self._cached_weights, self._state.weights, strict=True):
            cached.copy_(w)

    def _has_changed(self) -> bool:
        """Whether the caller has changed the weights, by their values: .data and NumPy count no versions."""
        pairs = zip(check_model(self.model), self._state.weights, self._cached_weights, strict=True)
        return self._on_any_rank(
            any(w.data_ptr() != bound.data_ptr() or not torch.equal(w, cached) for w, bound, cached in pairs)
        )

    def _on_any_rank(self, flag: bool) -> bool:
        return any_rank(WHERE, flag, self._group, self._state.weights.a.device)

    def _of_whom(self) -> str:
        """The worst sample and its rank, where there are several."""
        if self._group is None:
            return ""
        worst = self._state.progress.worst
        rank = next(r for r in range(len(self._counts)) if worst < sum(self._counts[: r + 1]))
        return f", of sample {worst}, which is rank {rank}'s,"

    def _check_bound(self) -> None:
        now = check_weights(self.model)
        if any(w.data_ptr() != bound.data_ptr() for w, bound in zip(now, self._state.weights, strict=True)):
            raise ValueError(
                f"{WHERE}: the model's weights have moved to other memory (model.to, an assigned parameter); make a "
                "new WorstSampleSubgradient, and load_state_dict to go on"
            )

    def _take_up(self) -> None:
        """Begins at the weights as the caller left them. F and what was kept follow from the next observation."""
        on_all_ranks(WHERE, self._group, self._check_bound)
        if self._group is not None and len({*of_ranks(digest(self._state.weights), self._group, WHERE)}) > 1:
            raise ValueError(
                f"{WHERE}: the ranks have changed the weights differently, or some of them not; expected the same "
                "change on all ranks"
            )
        del self._loop  # before another takes as much memory
        self._loop = self._begun()
        self._state.progress.loss, self._state.progress.status = math.inf, GOING  # not observed yet
        self._loop.run(0, _trace(0))
        self._note_weights()


# ------------------------------------------------------------------------------------------------ choices and checks


def _prepared(
    model: LinearMinMaxLike,
    x: Tensor,
    y: Tensor,
    step: Literal["polyak", "sqrt", "power"],
    memory: str,
    loss: Literal["hinge", "cross_entropy"],
    margin: float,
    target: float,
    length: float | None,
    train_A: bool | None,
    validation: tuple[Tensor, Tensor] | None,
    alpha: float | None,
) -> tuple[Settings, Samples, Weights, int | None]:
    """Checks what this process brings: settings, samples, weights, how many samples are for validation."""
    check_choice("step", step, STEPS)
    check_choice("loss", loss, LOSSES)
    check_choice("memory", memory, ("auto", *MEMORIES))
    weights = check_weights(model)
    margin = check_number("margin", margin, weights.w2.dtype, positive=True)
    target = check_number("target", target, torch.float64, positive=False)
    length = 0.0 if length is None else check_number("length", length, torch.float64, positive=True)
    alpha = None if alpha is None else check_share("alpha", alpha)
    train_A = weights.a.requires_grad if train_A is None else bool(train_A)
    weights = Weights(*(w.detach() for w in weights))
    labels = check_samples("x", "y", x, y, weights)
    samples = Samples(x.detach().contiguous(), labels, len(x))
    if train_A:
        check_squares(samples.x)
    if validation is not None:
        if not isinstance(validation, tuple) or len(validation) != 2:
            raise TypeError(f"{WHERE}: validation is a {type(validation).__name__}; expected a pair (x, y)")
        validation_labels = check_samples("validation[0]", "validation[1]", *validation, weights)
        samples.x = torch.cat([samples.x, validation[0].detach()])
        samples.y = torch.cat([labels, validation_labels])
    settings = Settings(loss, margin, step, target, length, train_A, alpha)
    return settings, samples, weights, None if validation is None else len(validation[0])


class _Share(NamedTuple):
    """A rank's part of the run: what must be equal on all, and how much it brings."""

    settings: Settings
    weights: str
    samples: int
    watched: int | None  # validation samples
    classes: list[int]


def _shares_of_ranks(share: _Share, group: dist.ProcessGroup | None) -> list[_Share]:
    """The shares of all ranks, or on every rank an error that names what differs between them."""
    shares = of_ranks(share, group, WHERE)
    facts = [
        {"the weights": each.weights, "the settings": each.settings, "validation": each.watched is None}
        for each in shares
    ]
    check_equal(WHERE, facts, "the same model and options on all ranks, and validation samples on all or none")
    return shares


def _choose(state: State, memory: str, is_shared: bool) -> tuple[str, str]:
    """The memory, and why."""
    weights, device = state.weights, state.weights.a.device
    dtype, (q, p), K, N = weights.a.dtype, weights.w1.shape, len(weights.w2), len(state.samples.x)
    chosen = LOOPS.backend_on(device, dtype)
    if chosen == "cpp" and dtype not in DTYPES:
        raise TypeError(f"{WHERE}: the weights are {dtype}; expected torch.float32 or torch.float64 on the CPU")
    reason = f"backend {chosen} on {device} has no cache for this run"
    if chosen == "triton":
        reason = why_not(state)
        if not reason and is_shared:
            return "launch", "launch: winner caches, and one launch an iteration, between which the ranks meet"
        if not reason and N <= LARGEST:
            return "program", "program: winner caches, and many iterations in one Triton program"
        if not reason:
            return "graph", "graph: winner caches, one launch an iteration, and many iterations in one CUDA graph"
    if chosen == "cpp" and state.settings.train_a and state.mass > 1:
        reason = f"F is the mean of {state.mass:.6g} samples, whose steps move A in most of its rows"
        return "dense", f"every iteration is dense: {reason}"
    if chosen != "cpp" or not is_available(dtype):
        return "dense", f"every iteration is dense: {reason}"
    sizes = {name: bytes_needed(N, p, q, K, weights.a.element_size(), name) for name in MEMORIES}
    listed = ", ".join(f"{name} {size / 2**20:.4g} MiB" for name, size in sizes.items())
    wanted = "winners" if memory == "auto" else memory
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if sizes[wanted] > held:
        raise MemoryError(
            f"{WHERE}: {wanted} need {sizes[wanted] / 2**30:.3g} GiB for N = {N}, p = {p}, q = {q}, K = {K}; this "
            f"machine has {held / 2**30:.3g} GiB ({listed}); use memory='winners', fewer samples or fewer hidden units"
        )
    asked = "asked for" if memory == wanted else "faster than trees at every size measured, and smaller"
    return wanted, f"{wanted}: {asked} ({listed})"


def _copied(weights: Weights) -> Weights:
    return Weights(*(w.clone() for w in weights))


def _named(weights: Weights) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in zip(("A", "W1", "W2"), weights, strict=True)}


def _trace(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.float64, device="cpu")
