"""The iterations in Triton, on winner caches: A fixed, float32 or float64; nothing goes to the host in between.

An iteration has two parts. samples.py follows a step through the samples, block by block; step.py, one program, finds
n* and takes the next step. Few samples are served by one program that does both in turn, as often as asked; many by a
launch an iteration, a program each block, of which the last to finish takes the step. A CUDA graph holds many of them.

The host starts a run and takes it back to its best iterate, each time by a dense evaluation, and looks at how it stands
every _LONGEST iterations. F, n*, the steps and what is kept are the definition's: where exp and log differ from the C
library's in their last places, those of the cross-entropy follow in float64, and rarely in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned, capturing
from ...kernels.runtime.grid import next_power_of_2
from ...triton_or_stub import tl, triton
from .captured_loop import Repeated
from .checks import WHERE
from .definition import (
    GOING,
    Activations,
    Dense,
    Moves,
    Observation,
    Seen,
    State,
    Weights,
    activate_ref,
    loss_gradients,
)
from .samples import visit
from .step import RETURN, advance

LARGEST = 1 << 9  # samples that one program serves: two blocks after each other should take as long as a launch does
_LONGEST = 1 << 10  # iterations between two looks of the host
_INTEGERS, _FLOATS, _COUNTERS = 9, 8, 6  # of Progress, and of the device's own


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    width = _width(problem)
    of_loss = {"ROWS": 16, "num_warps": 4} if problem["loss"] == "hinge" else {"ROWS": 8, "num_warps": 8}
    return {"BLOCK": 128 // width, "PAIRS": 8, "LEAVES": 256 // width, **of_loss}


def _default_of_program(problem: Mapping[str, int | str | bool]) -> Config:
    width = _width(problem)
    return {"BLOCK": 256 // width, "ROWS": 8, "PAIRS": 16 // width, "LEAVES": 128, "num_warps": 8}


def _width(problem: Mapping[str, int | str | bool]) -> int:
    """Registers that a number takes."""
    return 2 if problem["dtype"] == "torch.float64" else 1


# any config gives the same bits: samples do not depend on each other, and a minimum does not on an order
PROGRAM = Tuned(
    "worst_sample_program.triton",
    Space(
        {
            "BLOCK": (128, 256, 512),
            "ROWS": (4, 8, 16),
            "PAIRS": (4, 8, 16),
            "LEAVES": (128, 256, 512),
            "num_warps": (4, 8, 16),
        }
    ),
    default=_default_of_program,
    source=Path(__file__).with_name("samples.py"),
)
ITERATION = Tuned(
    "worst_sample_iteration.triton",
    Space(
        {
            "BLOCK": (64, 128, 256, 512),
            "ROWS": (4, 8, 16),
            "PAIRS": (4, 8, 16),
            "LEAVES": (128, 256, 512),
            "num_warps": (2, 4, 8),
        }
    ),
    default=_default,
    source=Path(__file__).with_name("samples.py"),
)


def why_not(state: State) -> str:
    """Why a run must be dense in every iteration; "" where it can keep caches."""
    if state.settings.train_a:
        return "A is trained, and moves a leaf of every unit"
    if state.mass > 1:
        return f"F is the mean of {state.mass:.6g} samples, whose steps move hundreds of weights"
    if state.weights.w1.dtype not in (torch.float32, torch.float64):
        return f"the weights are {state.weights.w1.dtype}"
    return ""


class Run(NamedTuple):
    """The numbers and tensors of a run, as the kernels take them."""

    N: Any  # samples, of which `training` come first
    training: Any
    p: Any
    q: Any
    K: Any
    line: Any  # entries of a line of the journal: twice the routes
    z: Any  # [N, p]
    zt: Any  # [p, N]
    y: Any  # [N] int32
    u: Any  # [N, q]
    ut: Any  # [q, N]
    i: Any  # [q, N] int32
    unit_bound: Any  # [q, N]: no leaf but the winner beats it
    f: Any  # [K, N]
    j: Any  # [K, N] int32
    score_bound: Any  # [K, N]
    w1: Any  # [q, p]
    w2: Any  # [K, q]
    best_w1: Any
    best_w2: Any
    right_w1: Any  # of the most validation samples classified rightly
    right_w2: Any
    finished: Any  # [1] int32: blocks, of this iteration
    route_k: Any  # [routes] int32: the classes, units and leaves of the last step
    route_j: Any
    route_i: Any
    journal: Any  # [lines, line] int64: entries of W1, of W2 from q p on, that moved since they were kept
    times: Any  # [training] int64
    integers: Any  # [9] int64: of Progress, in its order
    floats: Any  # [8] fp64: likewise
    counters: Any  # [6] int64: iterations done and asked for, whether weights moved, lines noted and kept (twice)
    levels: Any  # [2] fp64: Δ and the target
    roots: Any  # [_LONGEST] fp64: by which "sqrt" and "power" divide, of each coming iteration
    trace: Any  # [_LONGEST] fp64
    # of one config, within an iteration
    blocks: Any = None
    largest: Any = None  # [blocks]: of each block the largest ℓ, whose it is, and how many validation samples are right
    worst: Any = None  # [blocks] int32
    right: Any = None  # [blocks] int32
    lists: Any = None  # [programs, 1 + K, BLOCK] int32


@triton.jit
def _program_kernel(
    run,
    HINGE: tl.constexpr, POLYAK: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    advance(run, HINGE, POLYAK, WATCHED, CLASSES)
    tl.debug_barrier()
    while tl.load(run.counters + 2) != 0:
        for block in range(run.blocks):
            visit(run, block, run.lists, HINGE, WATCHED, CLASSES, BLOCK, ROWS, PAIRS, LEAVES)
        tl.debug_barrier()
        advance(run, HINGE, POLYAK, WATCHED, CLASSES)
        tl.debug_barrier()


@triton.jit
def _iteration_kernel(
    run,
    HINGE: tl.constexpr, POLYAK: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    if tl.load(run.counters + 2) != 0:
        block = tl.program_id(0)
        lists_ptr = run.lists + block.to(tl.int64) * (1 + run.K) * BLOCK
        visit(run, block, lists_ptr, HINGE, WATCHED, CLASSES, BLOCK, ROWS, PAIRS, LEAVES)
        tl.debug_barrier()  # all that this program has written goes before its count
        if tl.atomic_add(run.finished, 1, sem="acq_rel") == run.blocks - 1:
            tl.store(run.finished, 0)
            advance(run, HINGE, POLYAK, WATCHED, CLASSES)


@triton.jit
def _visit_kernel(
    run,
    HINGE: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    lists_ptr = run.lists + block.to(tl.int64) * (1 + run.K) * BLOCK
    visit(run, block, lists_ptr, HINGE, WATCHED, CLASSES, BLOCK, ROWS, PAIRS, LEAVES)


@triton.jit
def _advance_kernel(
    run, HINGE: tl.constexpr, POLYAK: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr
):  # fmt: skip
    advance(run, HINGE, POLYAK, WATCHED, CLASSES)


class Cached(Dense):
    """The definition's iterations on winner caches; the start and each return to the best are dense.

    is_shared: other ranks have samples too. Then `follow` is called for each of their common steps, and `run` is not.
    """

    def __init__(
        self,
        state: State,
        activate: Callable[[Tensor, Weights], Activations] = activate_ref,
        is_shared: bool = False,
    ) -> None:
        super().__init__(state, activate)
        samples, weights, settings = state.samples, state.weights, state.settings
        (q, p), K, N, device = weights.w1.shape, len(weights.w2), len(samples.y), weights.w1.device
        is_hinge = settings.loss == "hinge"
        self._kernel = PROGRAM if N <= LARGEST and not is_shared else ITERATION
        self._problem = {"N": N, "p": p, "q": q, "K": K, "loss": settings.loss, "dtype": str(weights.w1.dtype)}
        routes = 2 if is_hinge else K
        lines = -(-(weights.w1.numel() + weights.w2.numel()) // (2 * routes)) + _LONGEST
        self._kept = state.best, state.best_right or state.best

        empty = self._empty
        self._words = torch.zeros(_INTEGERS + _FLOATS + _COUNTERS, dtype=torch.int64, device=device)
        integers, floats, counters = self._words.split([_INTEGERS, _FLOATS, _COUNTERS])
        levels = [settings.margin, settings.target, torch.finfo(weights.w1.dtype).eps]
        self._run = Run(
            N, samples.training, p, q, K, line=2 * routes,
            z=self.z, zt=self.z.T.contiguous(), y=samples.y,
            u=empty(N, q), ut=empty(q, N), i=empty(q, N, dtype=torch.int32), unit_bound=empty(q, N),
            f=empty(K, N), j=empty(K, N, dtype=torch.int32), score_bound=empty(K, N),
            w1=weights.w1, w2=weights.w2, best_w1=state.best.w1, best_w2=state.best.w2,
            right_w1=self._kept[1].w1, right_w2=self._kept[1].w2,
            finished=torch.zeros(1, dtype=torch.int32, device=device),
            route_k=empty(routes, dtype=torch.int32), route_j=empty(routes, dtype=torch.int32),
            route_i=empty(routes, dtype=torch.int32),
            journal=empty(lines, 2 * routes, dtype=torch.int64), times=state.times_worst,
            integers=integers, floats=floats.view(torch.float64), counters=counters,
            levels=torch.tensor(levels, dtype=torch.float64, device=device),
            roots=empty(_LONGEST, dtype=torch.float64), trace=empty(_LONGEST, dtype=torch.float64),
        )  # fmt: skip
        # no multiplication and addition in one: the definition rounds both
        self._constants = {"WATCHED": state.best_right is not None, "HINGE": is_hinge, "enable_fp_fusion": False}
        self._constants |= {"CLASSES": max(2, next_power_of_2(K)), "POLYAK": settings.step == "polyak"}
        self._launches: dict[frozenset[tuple[str, int]], Callable[[int], None]] = {}
        self._visits: tuple[Config, Run] | None = None
        if not is_shared:
            self._launches_now()  # compiled here; nothing is asked for yet
        self._fill()

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        w1 = self.state.weights.w1
        return torch.empty(shape, dtype=dtype or w1.dtype, device=w1.device)

    def _launches_now(self) -> Callable[[int], None]:
        """Launches so many iterations, with the config of now; each config is laid out once."""
        tiles = self._kernel.config(self._problem, self._words.device)
        launch = self._launches.get(frozenset(tiles.items()))
        if launch is None:
            with torch.cuda.device_of(self._words):  # Triton launches on the present device
                launch = self._launches[frozenset(tiles.items())] = self._laid_out(tiles)
        return launch

    def _laid_out(self, tiles: Config) -> Callable[[int], None]:
        """The launches of a config, and what its blocks tell each other within an iteration."""
        run, constants, is_program = self._run, self._constants, self._kernel is PROGRAM
        run, blocks = self._with_blocks(tiles, is_program), -(-run.N // tiles["BLOCK"])
        if is_program:
            return lambda count: _program_kernel[(1,)](run, **constants, **tiles)
        repeated = Repeated(lambda: _iteration_kernel[(blocks,)](run, **constants, **tiles), self._words.device)

        def iterate(count: int) -> None:
            _advance_kernel[(1,)](run, **constants)
            repeated(count)

        return iterate

    def _with_blocks(self, tiles: Config, is_program: bool) -> Run:
        blocks = -(-self._run.N // tiles["BLOCK"])
        return self._run._replace(
            blocks=blocks,
            largest=self._empty(blocks),
            worst=self._empty(blocks, dtype=torch.int32),
            right=self._empty(blocks, dtype=torch.int32),
            lists=self._empty(1 if is_program else blocks, 1 + self._run.K, tiles["BLOCK"], dtype=torch.int32),
        )

    def _iterate(self, count: int) -> None:
        launch = self._launches_now()
        with torch.cuda.device_of(self._words):
            launch(count)

    def _fill(self) -> None:
        """Fills the caches from a dense evaluation, which bounds a winner's rivals by the winner itself."""
        u, i, f, j = self.activations
        run = self._run
        for cache, values in ((run.u, u), (run.i, i.T), (run.j, j.T)):
            cache.copy_(values)
        for cache, values in ((run.ut, u), (run.unit_bound, u), (run.f, f), (run.score_bound, f)):
            cache.copy_(values.T)
        self._note()

    def _note(self) -> None:
        """Begins the journal with the entries that differ from the kept weights."""
        ours, *kept = (torch.cat([of.w1.flatten(), of.w2.flatten()]) for of in (self.state.weights, *self._kept))
        entries = torch.stack([ours != theirs for theirs in kept]).any(dim=0).nonzero().flatten()
        lines = -(-len(entries) // self._run.line)
        journal = self._run.journal.flatten()[: lines * self._run.line]
        journal.copy_(torch.cat([entries, entries[:1].expand(len(journal) - len(entries))]))
        self._noted, self._copied = lines, [0, 0]

    def follow(self, moves: Moves) -> None:
        """Has the caches follow a step of one sample, any other moves by a dense evaluation; then observes."""
        routes = self._routes(moves)
        if routes is None:
            self._evaluate()
            self._fill()
            return
        for of_run, of_step in zip((self._run.route_k, self._run.route_j, self._run.route_i), routes, strict=True):
            of_run.copy_(torch.tensor(of_step, dtype=torch.int32, device="cpu"))
        tiles = ITERATION.config(self._problem, self._words.device)
        if self._visits is None or self._visits[0] != tiles:
            self._visits = tiles, self._with_blocks(tiles, False)
        run = self._visits[1]
        constants = {name: value for name, value in self._constants.items() if name != "POLYAK"}
        with torch.cuda.device_of(self._words):  # Triton launches on the present device
            _visit_kernel[(run.blocks,)](run, **constants, **tiles)
        self.seen = self._seen(run)

    def _routes(self, moves: Moves) -> tuple[list[int], list[int], list[int]] | None:
        """k, j and i of a step, the last repeated to as many as the kernel takes; None where it cannot take them."""
        leaves, most = dict(moves.leaves), len(self._run.route_k)
        if moves.rows or len(leaves) < len(moves.leaves) or not 0 < len(moves.readouts) <= most:
            return None
        if {j for _, j in moves.readouts} != leaves.keys():
            return None
        routes = [(k, j, leaves[j]) for k, j in moves.readouts]
        routes += [routes[-1]] * (most - len(routes))
        k, j, i = (list(of_routes) for of_routes in zip(*routes, strict=True))
        return k, j, i

    def _seen(self, run: Run) -> Observation:
        """The worst of the blocks' worst samples: the first."""
        state = self.state
        largest = run.largest.cpu()
        block = int(largest.max(dim=0).indices)
        n = int(run.worst[block])
        scores, y = run.f[:, n][None], state.samples.y[n : n + 1]
        units = run.j[:, n].tolist()
        routes = [(k, units[k], int(run.i[units[k], n]), c) for k, c in loss_gradients(scores, y, state.settings)[0]]
        seen = Seen(largest[block].item(), n, scores.double().abs().max().item(), routes, None)
        return Observation([seen], -1 if state.best_right is None else int(run.right.sum()))

    def run(self, iterations: int, trace: Tensor) -> int:
        """At most so many iterations; arguments and result as in Dense.run.

        Raises:
            RuntimeError: inside the capture of a CUDA graph, where the host cannot read how the run stands.
        """
        progress = self.state.progress
        if capturing(self._words.device):
            raise RuntimeError(
                f"{WHERE}: a CUDA graph is being captured; expected a call outside: its iterations are in a graph of "
                "their own already"
            )
        if math.isinf(progress.loss):
            self._observe()
        done = 0
        while done < iterations and progress.status == GOING:
            launched = self._launch(trace[done : done + _LONGEST])
            done += launched
            if launched == 0 and progress.status == GOING:  # the tuner plans these launches, and none was made
                break
            if progress.status == RETURN:
                for ours, best in zip(self.state.weights, self.state.best, strict=True):
                    ours.copy_(best)
                progress.status = GOING
                progress.iteration += 1
                self._evaluate()
                self._fill()
                self._observe()
                trace[done] = progress.loss
                done += 1
        return done

    def _launch(self, trace: Tensor) -> int:
        """Iterations until `trace` is full or the run halts."""
        run, settings, count = self._run, self.state.settings, len(trace)
        if self._noted + count > len(run.journal):
            self._note()
        words = torch.frombuffer(self.state.progress, dtype=torch.int64)
        own = torch.tensor([0, count, 0, self._noted, *self._copied], device="cpu")
        self._words.copy_(torch.cat([words, own]))
        if settings.step != "polyak":
            first = self.state.progress.iteration + 1
            root = math.sqrt if settings.step == "sqrt" else lambda t: math.pow(t, 0.6)
            roots = [root(t) for t in range(first, first + count)]  # the definition's bits, which no GPU promises
            run.roots[:count] = torch.tensor(roots, dtype=torch.float64, device="cpu")
        try:
            self._iterate(count)
            self._words.cpu()  # waits for the device; Ctrl-C is heard here, and the iterations are done all the same
        finally:
            now = self._words.cpu()
            words.copy_(now[: len(words)])
            done, _, _, self._noted, *self._copied = now[len(words) :].tolist()
        trace[:done] = run.trace[:done].to(trace.device)
        return done
