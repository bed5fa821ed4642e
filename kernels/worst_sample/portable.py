"""Many iterations in one Triton program, for problems that one block of threads serves: hinge, A fixed, none watched.

A step moves one leaf each of units a and b. The program goes over the samples in blocks: for each, one leaf of either
unit, then the leaves of both in every class, as cpu.cpp does without its bound: a winner that has fallen behind its old
value is sought again among all leaves. Then ℓ, and the largest of the lanes for n*. Between the blocks' part and the
step's part the program waits for its own stores; nothing goes to the host. It halts where the iterates must go back to
the best ones, which the host does by a dense evaluation, and where the run has ended.

The best weights follow by a journal of the moved entries, each of which is copied once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..triton_or_stub import tl, triton
from .definition import DIVERGED, GOING, IDLE, MET, PATIENCE, ROUNDED, Dense, State

RETURN = 4  # status: to the best iterate, which is the host's part
_INTEGERS = ("iteration", "status", "worst", "idle", "raises", "best_iteration")
_FLOATS = ("loss", "best_loss", "record", "gap", "path", "longest_path", "length")
_BLOCK = 512  # the largest that spills nothing on sm_80 and up
_LARGEST = 1 << 14  # samples; not measured yet: above, a dense evaluation fills the GPU


def is_suited(state: State) -> bool:
    """Whether the program serves this run; the others are dense."""
    settings = state.settings
    return (
        settings.loss == "hinge"
        and settings.step != "power"  # no power function that every backend of Triton has
        and not settings.train_a
        and state.best_right is None
        and state.weights.w1.dtype in (torch.float32, torch.float64)
        and len(state.samples.y) <= _LARGEST
    )


@triton.jit
def _enter(
    leaves_ptr,  # [count, N]: all leaves of this minimum or maximum, of which `index` has moved
    weights_ptr,  # [count]
    best_ptr,  # [N]
    winner_ptr,  # [N]
    index, count, N, offs, mask,
    WORST: tl.constexpr, MAXIMUM: tl.constexpr,
):  # fmt: skip
    v = tl.load(leaves_ptr + index.to(tl.int64) * N + offs, mask=mask, other=0.0) + tl.load(weights_ptr + index)
    best = tl.load(best_ptr + offs, mask=mask, other=0.0)
    winner = tl.load(winner_ptr + offs, mask=mask, other=-1)
    own = winner == index
    behind = (v < best) if MAXIMUM else (v > best)
    ahead = (v > best) if MAXIMUM else (v < best)
    wins = (winner != index) & (ahead | ((v == best) & (index < winner))) & mask
    unsure = own & behind
    now = tl.where(wins | own, v, best)
    winner = tl.where(wins, index, winner)
    if tl.max(unsure.to(tl.int32), axis=0) > 0:
        top = tl.full(now.shape, WORST, now.dtype)
        first = tl.zeros(now.shape, tl.int32)
        at = leaves_ptr + offs
        for leaf in range(count):
            x = tl.load(at, mask=unsure, other=0.0) + tl.load(weights_ptr + leaf)
            better = (x > top) if MAXIMUM else (x < top)
            first = tl.where(better, leaf, first)
            top = tl.where(better, x, top)
            at += N
        now = tl.where(unsure, top, now)
        winner = tl.where(unsure, first, winner)
    tl.store(best_ptr + offs, now, mask=mask)
    tl.store(winner_ptr + offs, winner, mask=mask)


@triton.jit
def _worst_sample_kernel(
    zt_ptr,  # [p, N]
    y_ptr,  # [N] int32
    u_ptr, i_ptr,  # [q, N], int32
    f_ptr, j_ptr,  # [K, N], int32
    w1_ptr, w2_ptr,  # [q, p], [K, q]
    best_w1_ptr, best_w2_ptr,
    times_ptr,  # [N] int64
    integers_ptr,  # [8] int64, _INTEGERS, the iterations done and the journal's lines that the best has
    floats_ptr,  # [7] fp64, _FLOATS
    trace_ptr,  # [iterations] fp64
    journal_ptr,  # [noted + iterations, 4] int32: entries of W1, of W2 from q p on, that moved since the best
    noted, iterations, N, p, q, K,
    margin_ptr,  # [2] fp64: Δ and the target
    INFINITY: tl.constexpr, EPSILON: tl.constexpr, PATIENCE: tl.constexpr, IDLE: tl.constexpr,
    GOING: tl.constexpr, MET: tl.constexpr, ROUNDED: tl.constexpr, DIVERGED: tl.constexpr, RETURN: tl.constexpr,
    POLYAK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = w1_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    classes = tl.arange(0, BLOCK_K)
    target = tl.load(margin_ptr + 1)
    margin = tl.load(margin_ptr).to(dtype)
    iteration, status, n = tl.load(integers_ptr), tl.load(integers_ptr + 1), tl.load(integers_ptr + 2)
    idle, raises, best_iteration = tl.load(integers_ptr + 3), tl.load(integers_ptr + 4), tl.load(integers_ptr + 5)
    loss, best_loss, record = tl.load(floats_ptr), tl.load(floats_ptr + 1), tl.load(floats_ptr + 2)
    gap, path = tl.load(floats_ptr + 3), tl.load(floats_ptr + 4)
    longest, length = tl.load(floats_ptr + 5), tl.load(floats_ptr + 6)
    done = 0
    copied = 0
    while (done < iterations) & (status == GOING):
        # the step: best rival, the two routes, γ
        y = tl.load(y_ptr + n)
        scores = tl.load(f_ptr + classes.to(tl.int64) * N + n, mask=classes < K, other=-INFINITY)
        rivals = tl.where((classes == y) | (classes >= K), -INFINITY, scores + margin)
        rival = tl.min(tl.where(rivals == tl.max(rivals, axis=0), classes, BLOCK_K), axis=0)
        a, b = tl.load(j_ptr + rival.to(tl.int64) * N + n), tl.load(j_ptr + y.to(tl.int64) * N + n)
        i_a, i_b = tl.load(i_ptr + a.to(tl.int64) * N + n), tl.load(i_ptr + b.to(tl.int64) * N + n)
        squares = tl.where(a == b, 2.0, 4.0).to(tl.float64)
        norm = tl.sqrt(squares)
        if record == INFINITY:
            record = loss
            gap = loss - target
            longest = PATIENCE * (loss - target) / norm
            length = tl.where(length == 0, (loss - target) / norm, length)
        gamma = length / (norm * tl.sqrt((iteration + 1).to(tl.float64)))
        if POLYAK:
            if loss <= record - gap / 2:
                record = loss
                path = path * 0
            elif path > longest:
                status = status * 0 + RETURN
                gap = tl.minimum(gap, best_loss - target) / 2
                longest = longest * 0.7071067811865476
                record = best_loss
                path = path * 0
                raises += 1
            level = tl.maximum(target, best_loss - gap)
            gamma = (loss - level) / squares
            path += tl.where(status == GOING, (loss - level) / norm, 0.0)
        if status == GOING:
            change = gamma.to(dtype)
            w2_a, w2_b = rival * q + a, y * q + b
            w1_a, w1_b = a * p + i_a, b * p + i_b
            tl.debug_barrier()
            tl.store(w2_ptr + w2_a, tl.load(w2_ptr + w2_a) - change)
            tl.store(w2_ptr + w2_b, tl.load(w2_ptr + w2_b) + change)
            if a != b:
                tl.store(w1_ptr + w1_a, tl.load(w1_ptr + w1_a) - change)
                tl.store(w1_ptr + w1_b, tl.load(w1_ptr + w1_b) + change)
            line_ptr = journal_ptr + (noted + done) * 4
            tl.store(line_ptr, w1_a)
            tl.store(line_ptr + 1, w1_b)
            tl.store(line_ptr + 2, q * p + w2_a)
            tl.store(line_ptr + 3, q * p + w2_b)
            tl.debug_barrier()

            # the samples, and the largest loss of each lane
            top = tl.full([BLOCK], -1.0, dtype)
            top_n = tl.zeros([BLOCK], tl.int32)
            for begin in range(0, N, BLOCK):
                offs = begin + lanes
                mask = offs < N
                row_a, row_b = a.to(tl.int64) * N, b.to(tl.int64) * N
                _enter(zt_ptr, w1_ptr + a * p, u_ptr + row_a, i_ptr + row_a, i_a, p, N, offs, mask, INFINITY, False)
                _enter(zt_ptr, w1_ptr + b * p, u_ptr + row_b, i_ptr + row_b, i_b, p, N, offs, mask, INFINITY, False)
                labels = tl.load(y_ptr + offs, mask=mask, other=0)
                best_rival = tl.full([BLOCK], -INFINITY, dtype)
                own = tl.zeros([BLOCK], dtype)
                for k in range(K):
                    row = k * N
                    _enter(u_ptr, w2_ptr + k * q, f_ptr + row, j_ptr + row, a, q, N, offs, mask, -INFINITY, True)
                    _enter(u_ptr, w2_ptr + k * q, f_ptr + row, j_ptr + row, b, q, N, offs, mask, -INFINITY, True)
                    score = tl.load(f_ptr + row + offs, mask=mask, other=0.0)
                    own = tl.where(labels == k, score, own)
                    best_rival = tl.where((labels != k) & (score + margin > best_rival), score + margin, best_rival)
                losses = tl.where(best_rival - own < 0, 0.0, best_rival - own)
                rises = mask & ((losses > top) | (losses != losses))
                top_n = tl.where(rises, offs, top_n)
                top = tl.where(rises, losses, top)
            tl.debug_barrier()
            iteration += 1

            # the new iterate
            largest = tl.max(tl.where(top != top, INFINITY, top), axis=0)
            n = tl.min(tl.where((top == largest) | (top != top), top_n, 2147483647), axis=0).to(tl.int64)
            loss = largest.to(tl.float64)
            tl.store(times_ptr + n, tl.load(times_ptr + n) + 1)
            tl.store(trace_ptr + done, loss)
            done += 1
            previous = best_loss
            if loss < previous:
                best_loss = loss
                best_iteration = iteration
                for entry in range(copied * 4, (noted + done) * 4):
                    at = tl.load(journal_ptr + entry)
                    if at < q * p:
                        tl.store(best_w1_ptr + at, tl.load(w1_ptr + at))
                    else:
                        tl.store(best_w2_ptr + at - q * p, tl.load(w2_ptr + at - q * p))
                copied = noted + done
            scores = tl.load(f_ptr + classes.to(tl.int64) * N + n, mask=classes < K, other=0.0)
            rounding = tl.max(tl.abs(scores), axis=0).to(tl.float64) * EPSILON
            idle = tl.where((previous <= loss) & (loss <= target + rounding), idle + 1, 0)
            if loss == INFINITY:
                status = status * 0 + DIVERGED
            elif loss <= target:
                status = status * 0 + MET
            elif idle >= IDLE:
                status = status * 0 + ROUNDED
    tl.store(integers_ptr, iteration)
    tl.store(integers_ptr + 1, status)
    tl.store(integers_ptr + 2, n)
    tl.store(integers_ptr + 3, idle)
    tl.store(integers_ptr + 4, raises)
    tl.store(integers_ptr + 5, best_iteration)
    tl.store(floats_ptr, loss)
    tl.store(floats_ptr + 1, best_loss)
    tl.store(floats_ptr + 2, record)
    tl.store(floats_ptr + 3, gap)
    tl.store(floats_ptr + 4, path)
    tl.store(floats_ptr + 5, longest)
    tl.store(floats_ptr + 6, length)
    tl.store(integers_ptr + 6, done)
    tl.store(integers_ptr + 7, copied)


class Persistent(Dense):
    """The definition's iterations, in one program a call; the start and each return to the best are dense."""

    def _evaluate(self) -> None:
        super()._evaluate()
        u, i, f, j = self.activations
        self._zt = self.z.T.contiguous()
        # the journal's first lines: what differs from the best, where others have changed the weights
        flat = [torch.cat([of.w1.flatten(), of.w2.flatten()]) for of in (self.state.weights, self.state.best)]
        entries = (flat[0] != flat[1]).nonzero().flatten().int()
        self._moved = torch.cat([entries, entries[:1].expand(-len(entries) % 4)]).view(-1, 4)
        self._cache = u.T.contiguous(), i.T.int().contiguous(), f.T.contiguous(), j.T.int().contiguous()

    def run(self, iterations: int, trace: Tensor) -> int:
        """As Dense.run."""
        progress = self.state.progress
        if math.isinf(progress.loss):
            self._observe()
        done = 0
        while done < iterations and progress.status == GOING:
            done += self._launch(trace[done:])
            if progress.status == RETURN:
                for ours, best in zip(self.state.weights, self.state.best, strict=True):
                    ours.copy_(best)
                progress.status = GOING
                progress.iteration += 1
                self._evaluate()
                self._observe()
                trace[done] = progress.loss
                done += 1
        return done

    def _launch(self, trace: Tensor) -> int:
        """Iterations until `trace` is full or the program halts."""
        state, progress, settings = self.state, self.state.progress, self.state.settings
        (q, p), K, device = state.weights.w1.shape, len(state.weights.w2), state.samples.x.device

        def on_device(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        integers = on_device([*(getattr(progress, name) for name in _INTEGERS), 0, 0], torch.int64)
        floats = on_device([getattr(progress, name) for name in _FLOATS], torch.float64)
        seen = torch.empty(len(trace), dtype=torch.float64, device=device)
        journal = torch.cat([self._moved, self._moved.new_empty(len(trace), 4)])
        _worst_sample_kernel[(1,)](
            self._zt, state.samples.y, *self._cache, state.weights.w1, state.weights.w2, state.best.w1, state.best.w2,
            state.times_worst, integers, floats, seen, journal,
            len(self._moved), len(trace), len(state.samples.y), p, q, K,
            on_device([settings.margin, settings.target], torch.float64),
            **constants(state.weights.w1.dtype, settings.step == "polyak", len(state.samples.y), K),
        )  # fmt: skip
        *numbers, done, copied = integers.tolist()  # waits for the device
        for names, values in ((_INTEGERS, numbers), (_FLOATS, floats.tolist())):
            for name, value in zip(names, values, strict=True):
                setattr(progress, name, value)
        self._moved = journal[copied : len(self._moved) + done]
        trace[:done] = seen[:done].to(trace.device)
        return done


def constants(dtype: torch.dtype, is_polyak: bool, N: int, K: int) -> dict[str, float | int | bool]:
    """What the kernel is compiled with."""
    return {
        "INFINITY": math.inf,
        "EPSILON": torch.finfo(dtype).eps,
        "PATIENCE": PATIENCE,
        "IDLE": IDLE,
        "GOING": GOING,
        "MET": MET,
        "ROUNDED": ROUNDED,
        "DIVERGED": DIVERGED,
        "RETURN": RETURN,
        "POLYAK": is_polyak,
        "BLOCK": min(_BLOCK, triton.next_power_of_2(N)),
        "BLOCK_K": max(2, triton.next_power_of_2(K)),
    }
