"""Epochs of a loader: one of training, one of evaluation; what is not finite ends them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...kernels.runtime.ranks import of_ranks

_NEVER = 1 << 40  # more batches than an epoch has


class NotFinite(ValueError):
    """A loss or a gradient that is not finite; the weights reached before it were put back."""

    def __init__(self, what: str, batch: int) -> None:
        super().__init__(what, batch)
        self.what, self.batch = what, batch


class Evaluation(NamedTuple):
    """A pass in eval mode."""

    loss: float  # the batches' losses, weighted by their samples
    error: float | None  # the loss's standard error, from its spread over batches; None of a single one
    accuracy: float | None  # where the output is a row of scores for each sample, and the labels are integers


class Epochs:
    """Runs a model over a loader's batches (x, y), by loss_fn(model(x), y), a mean over the batch.

    Under DistributedDataParallel each rank has a loader of its own, and what is returned is of all of them, on each.

    Args:
        loader: gives the same number of batches each time that it is iterated over, at least one.
        group: the ranks that average the gradients of `model`, which wraps `module`; None: one process, and no wrapper.
    """

    def __init__(
        self,
        where: str,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        device: torch.device,
        module: nn.Module | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.where, self.model, self.loss_fn, self.device = where, model, loss_fn, device
        self.module, self.group = module or model, group

    def train(self, loader: Iterable[Any], parameters: list[nn.Parameter], step: Callable[[], object]) -> float:
        """One epoch: the gradient of each batch, then `step`. Returns the mean of the batches' losses.

        Raises:
            NotFinite: a loss or a gradient is not finite: the first such batch.
            ValueError: the loader gives no batch.
        """
        self.model.train()
        first_bad = torch.full((2,), _NEVER, device=self.device)  # of a loss, of a gradient
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        samples = 0
        for batch, (x, y) in enumerate(self._batches(loader)):
            for parameter in parameters:
                parameter.grad = None
            loss = self.loss_fn(self.model(x), y)
            loss.backward()
            grads = [p.grad for p in parameters if p.grad is not None]
            finite = torch.stack([loss.detach().isfinite(), *(g.isfinite().all() for g in grads)])
            bad = torch.stack([~finite[0], ~finite[1:].all()])
            if self.group is not None and self.device.type == "cpu":
                bad = bad.int()  # so that all ranks end here, or none
                dist.all_reduce(bad, dist.ReduceOp.MAX, group=self.group)
                bad = bad.bool()
            first_bad = torch.where((first_bad == _NEVER) & bad, batch, first_bad)
            if self.device.type == "cpu" and bool(bad.any()):
                break
            step()
            total += loss.detach().double() * len(x)
            samples += len(x)
        if self.group is not None:
            dist.all_reduce(first_bad, dist.ReduceOp.MIN, group=self.group)
            sums = torch.stack([total, total.new_tensor(samples)])
            dist.all_reduce(sums, group=self.group)
            total, samples = sums.tolist()
        for what, at in zip(("loss", "gradient"), first_bad.tolist(), strict=True):
            if at < _NEVER:
                raise NotFinite(what, at)
        return float(total) / samples

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """A pass in eval mode; losses are added up in float64."""
        self.model.eval()
        if self.group is not None:
            for buffer in self.module.buffers():  # running statistics are those of the first rank
                dist.broadcast(buffer, group=self.group, group_src=0)
        losses, sizes, right, can_be_right = [], [], [], True
        for x, y in self._batches(loader):
            output = self.module(x)  # ranks may have different numbers of batches here
            losses.append(self.loss_fn(output, y).double())
            sizes.append(len(x))
            can_be_right = (
                isinstance(output, Tensor) and output.dim() == 2 and y.dim() == 1 and not y.is_floating_point()
            )
            if can_be_right:
                right.append((output.argmax(1) == y).sum())
        ours = torch.stack(losses).tolist(), sizes, int(sum(right)) if can_be_right else None
        all_losses, all_sizes, hits = zip(*of_ranks(ours, self.group), strict=True)
        loss, size = (torch.tensor([*chain(*each)], dtype=torch.float64) for each in (all_losses, all_sizes))
        share = size / size.sum()
        mean = float((loss * share).sum())
        error = None
        if len(loss) > 1:
            spread = float((share * (loss - mean) ** 2).sum() / (1 - (share**2).sum()))
            error = math.sqrt(spread * float((share**2).sum()))
        accuracy = None if None in hits else sum(hits) / float(size.sum())
        return Evaluation(mean, error, accuracy)

    def _batches(self, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        count = 0
        for batch in loader:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise TypeError(f"{self.where}: loader gives a {type(batch).__name__}; expected pairs (x, y)")
            count += 1
            x, y = batch
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        if count == 0:
            raise ValueError(
                f"{self.where}: loader gives no batch; expected one at least, each time it is iterated over"
            )
