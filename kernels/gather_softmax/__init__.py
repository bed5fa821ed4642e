"""Readout of gathered rows: z[b, v] = bias[v] + Σ_k weights[k] · weight[contexts[b, k], v], and its cross-entropy.

    loss[b] = log Σ_v exp z[b, v] − z[b, targets[b]]

An n-gram or naive-Bayes language model sums K rows of a table for each position. No logits [B, V] are ever held: the
forward keeps two numbers a position, and the backward makes each logit anew from them,

    ∂loss[b]/∂z[b, v] = p[b, v] − [v = targets[b]],    p = exp(z − top) · share,    share = 1 / Σ_v exp(z − top),

which flows to the rows that were gathered, each times weights[k], to bias and to weights. A CSR weight holds what is
different from zero; its logits are the bias but at the nonzeros of K rows.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed, looks_at_values
from ..runtime.dispatch import Gradient, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import join_batch, leave_batch, one_by_one
from . import by_cpp, by_torch, by_triton
from .definition import SPARSE_DTYPES, accumulator, gather_softmax_ref

__all__ = ["gather_softmax", "gather_softmax_ref"]

_OP = "gather_softmax"
_INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16)

_DENSE = Implementations(_OP, source=by_cpp.SOURCE, cpp=by_cpp.dense, triton=by_triton.dense, torch=by_torch.dense)
_DENSE_BACKWARD = Implementations(
    _OP, source=by_cpp.SOURCE, cpp=by_cpp.dense_backward, triton=by_triton.dense_backward, torch=by_torch.dense_backward
)
_SPARSE = Implementations(_OP, source=by_cpp.SOURCE, cpp=by_cpp.sparse, torch=by_torch.sparse)
_SPARSE_BACKWARD = Implementations(
    _OP, source=by_cpp.SOURCE, cpp=by_cpp.sparse_backward, torch=by_torch.sparse_backward
)

# ------------------------------------------------------------------------------------------------ dense


def _dense(weight: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """weight [D, V], contexts [B, K], targets [B], int64; bias [V], weights [K] -> losses, top, share, each [B].

    An index out of range raises IndexError on the CPU, and on a GPU, where that synchronises, inside
    torch.autograd.detect_anomaly(); elsewhere such a context adds nothing, and such a target makes a loss of NaN.
    """
    _check_indices(contexts, targets, weight.shape[0], bias.shape[0])
    if contexts.shape[0] == 0:
        return _dense_fake(weight, contexts, targets, bias, weights)
    return _DENSE.of(weight)(weight, contexts, targets, bias, weights)


def _dense_fake(weight, contexts, targets, bias, weights):
    return tuple(bias.new_empty(contexts.shape[0]) for _ in range(3))


def _dense_backward(
    g, weight, contexts, targets, bias, weights, top, share, needs_weight: bool, needs_bias: bool, needs_weights: bool
):
    """g, top, share [B] -> the gradients of weight, bias and weights; [0] where not needed."""
    if contexts.shape[0] == 0:
        needed = (weight, needs_weight), (bias, needs_bias), (weights, needs_weights)
        return tuple(x.new_zeros(x.shape if needs else (0,)) for x, needs in needed)
    args = weight, contexts, targets, bias, weights, top, share
    return _DENSE_BACKWARD.of(weight)(g, *args, needs_weight, needs_bias, needs_weights)


def _dense_backward_fake(
    g, weight, contexts, targets, bias, weights, top, share, needs_weight, needs_bias, needs_weights
):
    needed = (weight, needs_weight), (bias, needs_bias), (weights, needs_weights)
    return tuple(x.new_empty(x.shape if needs else (0,)) for x, needs in needed)


def _dense_gradient(grads, saved, sizes, needs) -> list[Tensor]:
    (g,), wanted = grads, (needs[0], *needs[3:])
    gradients = _BACKWARD(g, *saved, *wanted)
    return [gradient for gradient, needed in zip(gradients, wanted, strict=True) if needed]


# ------------------------------------------------------------------------------------------------ sparse


def _sparse(crow, col, values, contexts, targets, bias, weights):
    """The same of a CSR weight: crow [D + 1] int64, col [nonzeros] int64 or int32, values [nonzeros]."""
    _check_indices(contexts, targets, crow.shape[0] - 1, bias.shape[0])
    if contexts.shape[0] == 0:
        return _sparse_fake(crow, col, values, contexts, targets, bias, weights)
    return _SPARSE.of(values)(crow, col, values, contexts, targets, bias, weights)


def _sparse_fake(crow, col, values, contexts, targets, bias, weights):
    return tuple(bias.new_empty(contexts.shape[0]) for _ in range(3))


def _sparse_backward(
    g, crow, col, values, contexts, targets, bias, weights, top, share, needs_bias: bool, needs_weights: bool
):
    """g, top, share [B] -> the gradients of bias and weights; [0] where not needed."""
    if contexts.shape[0] == 0:
        return tuple(
            x.new_zeros(x.shape if needs else (0,)) for x, needs in ((bias, needs_bias), (weights, needs_weights))
        )
    args = crow, col, values, contexts, targets, bias, weights, top, share
    return _SPARSE_BACKWARD.of(values)(g, *args, needs_bias, needs_weights)


def _sparse_backward_fake(
    g, crow, col, values, contexts, targets, bias, weights, top, share, needs_bias, needs_weights
):
    return tuple(x.new_empty(x.shape if needs else (0,)) for x, needs in ((bias, needs_bias), (weights, needs_weights)))


def _sparse_gradient(grads, saved, sizes, needs) -> list[Tensor]:
    (g,), (of_values, *wanted) = grads, (needs[2], *needs[5:])
    if of_values:
        raise NotImplementedError(
            f"{_OP}: a sparse weight has no gradient; expected weight.detach(), or a dense weight to train"
        )
    gradients = _SPARSE_READOUT_BACKWARD(g, *saved, *wanted)
    return [gradient for gradient, needed in zip(gradients, wanted, strict=True) if needed]


# ------------------------------------------------------------------------------------------------ both


def _check_indices(contexts: Tensor, targets: Tensor, D: int, V: int) -> None:
    if not looks_at_values(contexts.device):
        return
    for name, index, least, size in (("contexts", contexts, -1, D), ("targets", targets, 0, V)):
        if index.numel():
            lowest, highest = (int(x) for x in index.aminmax())
            if lowest < least or highest >= size:
                skips = ", -1 to add nothing" if least else ""
                raise IndexError(
                    f"{_OP}: {name} reach from {lowest} to {highest}, out of range; expected [{least}, {size}){skips}"
                )


def _no_second_gradient(grads, saved, sizes, needs, *options) -> NoReturn:
    raise NotImplementedError(
        f"{_OP}: it is differentiated once; expected no create_graph=True: for second derivatives build the logits, "
        "weight[contexts].sum(1), and call torch.nn.functional.cross_entropy"
    )


def _mapped(info, dims, weight, contexts, targets, bias, weights):
    if all(dims[place] is None for place in (0, 3, 4)):  # one table for all: a longer batch
        inner = contexts.shape[1 if dims[1] == 0 else 0] if dims[1] is not None else contexts.shape[0]
        contexts, targets = join_batch((contexts, targets), dims[1:3], info.batch_size)
        results = _READOUT.dispatched(weight, contexts, targets, bias, weights)
        return leave_batch(results, (True,) * 3, info.batch_size, inner)
    return one_by_one("gather_softmax")(info, dims, weight, contexts, targets, bias, weights)


def _no_vmap(info, dims, *args) -> NoReturn:
    raise NotImplementedError(
        f"{_OP}: vmap does not apply to a sparse weight, of which torch maps none; expected a longer batch"
    )


# ------------------------------------------------------------------------------------------------ operators

_BACKWARD = operator(
    "gather_softmax_backward(Tensor g, Tensor weight, Tensor contexts, Tensor targets, Tensor bias, Tensor weights, "
    "Tensor top, Tensor share, bool needs_weight, bool needs_bias, bool needs_weights) "
    "-> (Tensor dweight, Tensor dbias, Tensor dweights)",
    _dense_backward,
    fake=_dense_backward_fake,
    vmap=one_by_one("gather_softmax_backward"),
    gradient=Gradient(_no_second_gradient),
)
_READOUT = operator(
    "gather_softmax(Tensor weight, Tensor contexts, Tensor targets, Tensor bias, Tensor weights) "
    "-> (Tensor losses, Tensor top, Tensor share)",
    _dense,
    fake=_dense_fake,
    vmap=_mapped,
    gradient=Gradient(_dense_gradient, inputs=(0, 1, 2, 3, 4), outputs=(1, 2), detached=(1, 2)),
)
_SPARSE_READOUT_BACKWARD = operator(
    "gather_softmax_sparse_backward(Tensor g, Tensor crow, Tensor col, Tensor values, Tensor contexts, "
    "Tensor targets, Tensor bias, Tensor weights, Tensor top, Tensor share, bool needs_bias, bool needs_weights) "
    "-> (Tensor dbias, Tensor dweights)",
    _sparse_backward,
    fake=_sparse_backward_fake,
    vmap=_no_vmap,
    gradient=Gradient(_no_second_gradient),
)
_SPARSE_READOUT = operator(
    "gather_softmax_sparse(Tensor crow, Tensor col, Tensor values, Tensor contexts, Tensor targets, Tensor bias, "
    "Tensor weights) -> (Tensor losses, Tensor top, Tensor share)",
    _sparse,
    fake=_sparse_fake,
    vmap=_no_vmap,
    gradient=Gradient(_sparse_gradient, inputs=(0, 1, 2, 3, 4, 5, 6), outputs=(1, 2), detached=(1, 2)),
)

# ------------------------------------------------------------------------------------------------ public


@traceable
def gather_softmax(
    weight: Tensor,
    contexts: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of a readout that sums K gathered rows, with no logits [B, V] in memory.

        z[b, v] = bias[v] + Σ_k weights[k] · weight[contexts[b, k], v]
        loss[b] = log Σ_v exp z[b, v] − z[b, targets[b]]

    Source: Williams & Zhao, "Explicit Foundation Model Optimization with Self-Attentive Feed-Forward Neural Units",
    2023 (contexts of K tokens); Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018.

    Args:
        weight: [D, V] float64, float32, float16 or bfloat16, any strides; or a torch.sparse_csr [D, V] of float64 or
            float32, whose columns ascend in each row. −∞, the logarithm of 0, is allowed.
        contexts: [B, K] integers in [0, D): the rows of each position; −1 adds nothing.
        targets: [B] integers in [0, V).
        bias: [V], zeros by default, in weight's dtype, or float32 where that has 16 bits.
        weights: [K], ones by default, in the same dtypes.

    Returns:
        Losses [B] in float32, float64 for float64. 16-bit weights are summed in float32. A target whose logit is −∞
        costs +∞; NaN propagates. Differentiable once in reverse mode, in a dense weight, in bias and in weights: on a
        CPU the same bits on any number of threads, on a GPU added up atomically, unless
        torch.use_deterministic_algorithms(True). A sparse weight has no gradient. Forward mode raises
        NotImplementedError. Under autocast nothing is cast down.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported layout or dtype.
        ValueError: devices or shapes do not fit.
        IndexError: a context outside [−1, D) or a target outside [0, V): on the CPU, and on a GPU inside
            torch.autograd.detect_anomaly(), as it costs a synchronisation; elsewhere on a GPU such a context adds
            nothing, and such a target makes a loss of NaN.
        NotImplementedError: a second derivative, or one of a sparse weight.
    """
    is_sparse = isinstance(weight, Tensor) and weight.layout == torch.sparse_csr
    _check_weight(weight, is_sparse)
    contexts, targets = (_indices(name, x, weight) for name, x in (("contexts", contexts), ("targets", targets)))
    if contexts.dim() != 2:
        raise ValueError(f"{_OP}: contexts has shape {tuple(contexts.shape)}; expected [B, K], K rows a position")
    if targets.shape != contexts.shape[:1]:
        raise ValueError(
            f"{_OP}: targets has shape {tuple(targets.shape)}; expected {tuple(contexts.shape[:1])}, to follow the "
            f"{tuple(contexts.shape)} of contexts"
        )
    V, K, dtype, device = weight.shape[1], contexts.shape[1], accumulator(weight.dtype), weight.device
    bias = torch.zeros(V, dtype=dtype, device=device) if bias is None else _vector("bias", bias, V, weight)
    weights = torch.ones(K, dtype=dtype, device=device) if weights is None else _vector("weights", weights, K, weight)
    if not is_sparse:
        return _READOUT(weight, contexts, targets, bias, weights)[0]
    crow, col, values = weight.crow_indices().long(), weight.col_indices(), weight.values()
    return _SPARSE_READOUT(crow, col, values, contexts, targets, bias, weights)[0]


def _check_weight(weight: Any, is_sparse: bool) -> None:
    if not is_sparse:
        memory.check_dense(_OP, "weight", weight, "weight.to_dense(), or weight.to_sparse_csr()")
    dtypes = SPARSE_DTYPES if is_sparse else FLOATS
    if weight.dtype not in dtypes:
        raise TypeError(f"{_OP}: weight is {weight.dtype}{' and sparse' * is_sparse}; expected one of {listed(dtypes)}")
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight has shape {tuple(weight.shape)}; expected [D, V]")


def _indices(name: str, x: Any, weight: Tensor) -> Tensor:
    memory.check_dense(_OP, name, x)
    if x.dtype not in _INDICES:
        raise TypeError(f"{_OP}: {name} is {x.dtype}; expected integers, one of {listed(_INDICES)}")
    _check_device(name, x, weight)
    return x.long()


def _vector(name: str, x: Any, size: int, weight: Tensor) -> Tensor:
    """bias or weights, as the accumulator's dtype."""
    memory.check_dense(_OP, name, x)
    wide = accumulator(weight.dtype)
    is_cast = torch.is_autocast_enabled(weight.device.type) and x.dtype in (torch.float16, torch.bfloat16)
    if x.dtype not in (weight.dtype, wide) and not is_cast:
        options = str(wide) if wide == weight.dtype else f"{weight.dtype} or {wide}"
        raise TypeError(f"{_OP}: {name} is {x.dtype}, weight is {weight.dtype}; expected one dtype, here {options}")
    _check_device(name, x, weight)
    if x.shape != (size,):
        letter = "V" if name == "bias" else "K"
        raise ValueError(f"{_OP}: {name} has shape {tuple(x.shape)}; expected [{letter}], {letter} = {size}")
    return x.to(wide)


def _check_device(name: str, x: Tensor, weight: Tensor) -> None:
    if x.device != weight.device:
        raise ValueError(f"{_OP}: {name} is on {x.device}, weight is on {weight.device}; expected one device")
