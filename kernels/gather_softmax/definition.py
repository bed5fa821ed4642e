"""The readout's oracle, which builds all logits, and what its forms share: dtypes, parts of a sum of exponentials."""

from __future__ import annotations

import torch
from torch import Tensor

SPARSE_DTYPES = (torch.float64, torch.float32)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, losses, bias and weights: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gather_softmax_ref(
    weight: Tensor, contexts: Tensor, targets: Tensor, *, bias: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """The oracle: all logits [B, V], in float64."""
    rows = weight.to_dense() if weight.layout == torch.sparse_csr else weight
    rows = torch.cat([rows.double(), rows.new_zeros(1, rows.shape[1], dtype=torch.float64)])  # context −1: the last
    z = rows.new_zeros(len(contexts), rows.shape[1]) if bias is None else bias.double().expand(len(contexts), -1)
    for k in range(contexts.shape[1]):
        term = rows[contexts[:, k].long()]
        z = z + (term if weights is None else torch.where(contexts[:, k : k + 1] < 0, 0, weights[k].double() * term))
    losses = z.logsumexp(1) - z.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    return losses.to(accumulator(weight.dtype))
