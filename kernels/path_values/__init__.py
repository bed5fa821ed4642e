"""Values of paths through a bias-free network: v(p) = Π_l W_l[p_{l+1}, p_l], the product of the weights that p takes.

Positively scale-invariant optimizers (G-SGD, path-SGD) work on them. Every path is a gather of one weight a layer, its
gradient a scatter: ∂v/∂w_l = (Π_{k<l} w_k) (Π_{k>l} w_k), by prefix and suffix products and no division, so that zeros
need no care. The weights of all layers lie in a row in memory, and one launch takes all paths through all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..mathematics.network import Size, as_list, network, pack, unpack
from ..runtime import memory
from ..runtime.arguments import looks_at_values, under_autocast
from ..runtime.dispatch import Gradient, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import inner_batch, join_batch, leave_batch
from . import by_cpp, by_triton, definition
from .definition import path_values_ref

__all__ = ["path_values", "path_values_ref"]

INDICES = (torch.int64, torch.int32, torch.int16)
_FORWARDS = Implementations(
    "path_values", source=by_cpp.SOURCE, cpp=by_cpp.forward, triton=by_triton.forward, torch=definition.values
)
_BACKWARDS = Implementations(
    "path_values", source=by_cpp.SOURCE, cpp=by_cpp.backward, triton=by_triton.backward, torch=definition.gradient
)

# ------------------------------------------------------------------------------------------------ values and gradients


def _forward(flat: Tensor, paths: Tensor, layers: Sequence[int]) -> Tensor:
    """flat [B, n] float32 or float64, paths [B, P, L + 1] -> values [B, P]; layers as network.pack gives them.

    A node outside its layer raises IndexError on the CPU, and on a GPU, where that synchronises, inside
    torch.autograd.detect_anomaly(); elsewhere nothing is read for it and the path's value is NaN.
    """
    if paths.numel() == 0 or flat.numel() == 0:
        if flat.device.type == "cpu":
            definition.check_nodes(paths, unpack(layers))
        return flat.new_full(paths.shape[:-1], float("nan"))
    return _of(_FORWARDS, flat, paths, layers)(flat, paths, unpack(layers))


def _backward(dv: Tensor, flat: Tensor, paths: Tensor, layers: Sequence[int]) -> Tensor:
    """dv [B, P] -> dflat [B, n]. Nodes outside their layer as in `_forward`: elsewhere they add nothing."""
    if paths.numel() == 0 or flat.numel() == 0:
        return torch.zeros_like(flat, memory_format=torch.contiguous_format)
    return _of(_BACKWARDS, flat, paths, layers)(dv, flat, paths, unpack(layers))


def _of(implementations: Implementations, flat: Tensor, paths: Tensor, layers: Sequence[int]) -> Callable[..., Tensor]:
    """The function that the call takes; where that one does not check the nodes, they are checked here."""
    chosen = implementations.backend_of(flat)
    if chosen != "cpp" and looks_at_values(flat.device):
        definition.check_nodes(paths, unpack(layers))
    return implementations.functions[chosen]


def _mapped(info, dims, flat, paths, layers):
    inner = inner_batch(flat, dims[0])
    flat, paths = join_batch((flat, paths), dims[:2], info.batch_size)
    (values,), (dim,) = leave_batch([_VALUES.dispatched(flat, paths, layers)], (True,), info.batch_size, inner)
    return values, dim


def _backward_mapped(info, dims, dv, flat, paths, layers):
    inner = inner_batch(flat, dims[1])
    dv, flat, paths = join_batch((dv, flat, paths), dims[:3], info.batch_size)
    (dflat,), (dim,) = leave_batch([_GRADIENT.dispatched(dv, flat, paths, layers)], (True,), info.batch_size, inner)
    return dflat, dim


def _second_gradient(grads, saved, sizes, needs, layers) -> list[Tensor]:
    """The gradients of dv and flat, in torch, differentiable again."""
    (g,), (dv, flat, paths) = grads, saved
    gradients = definition.second_gradient(g, dv, flat, paths, unpack(layers))
    return [gradient for gradient, needed in zip(gradients, needs, strict=False) if needed]


# ------------------------------------------------------------------------------------------------ operators

_GRADIENT = operator(
    "path_values_backward(Tensor dv, Tensor flat, Tensor paths, SymInt[] layers) -> Tensor",
    _backward,
    fake=lambda dv, flat, paths, layers: flat.new_empty(flat.shape),
    vmap=_backward_mapped,
    gradient=Gradient(_second_gradient, inputs=(0, 1, 2)),
)
_VALUES = operator(
    "path_values(Tensor flat, Tensor paths, SymInt[] layers) -> Tensor",
    _forward,
    fake=lambda flat, paths, layers: flat.new_empty(paths.shape[:-1]),
    vmap=_mapped,
    gradient=Gradient(
        lambda grads, saved, sizes, needs, layers: [_GRADIENT(*grads, *saved, layers)] if needs[0] else [],
        inputs=(0, 1),
    ),
)

# ------------------------------------------------------------------------------------------------ public


@traceable
def path_values(
    weights: Iterable[Tensor],
    paths: Tensor,
    *,
    input_size: Size | None = None,
    stride: Size = 1,
    padding: Size = 0,
) -> Tensor:
    """The value of each path, the product of the weights it takes: v(p) = Π_l W_l[p_{l+1}, p_l].

    Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.

    Args:
        weights: of L bias-free layers from the input to the output, of Linear (out, in) or of Conv2d (out, in, kh, kw),
            convolutions first; float64, float32, float16 or bfloat16, one dtype and device, any strides. A list, or any
            iterable, such as an nn.ParameterList.
        paths: [P, L + 1] int64, int32 or int16, any leading dimensions: p_0 is a node of the input, p_l of layer l's
            output. A node of a convolution is channel · (height · width) + row · width + column, as flattening numbers
            it, so a Linear layer may follow. Where a convolution has no edge between two nodes its weight counts as 0.
        input_size: (height, width) that the first convolution sees, or one integer for both.
        stride, padding: of the convolutions, as in torch.nn.Conv2d: one integer for all, or a sequence with one entry
            for each, an integer or (height, width).

    Returns:
        Values [P] in the weights' dtype, factors multiplied from the input on; 16-bit ones in float32, rounded once.
        Differentiable any number of times in reverse mode; forward mode raises NotImplementedError. The gradient costs
        O(P L), added up in float32 or wider: in the order of the paths on a CPU, by atomic additions on a GPU unless
        torch.use_deterministic_algorithms(True). Under autocast nothing is cast down.

    Raises:
        TypeError: weights or paths are of an unsupported type or dtype.
        ValueError: devices, ranks or sizes do not fit.
        IndexError: a node outside its layer, on the CPU; on a GPU the path's value is NaN and it has no gradient,
            or, inside torch.autograd.detect_anomaly(), IndexError.
    """
    weights = under_autocast(as_list("path_values", weights))
    layers = network("path_values", weights, input_size, stride, padding)
    _check_paths(paths, len(layers), weights[0].device)
    dtype = weights[0].dtype
    flat = torch.cat([w.reshape(w.numel()) for w in weights]).unsqueeze(0)
    if dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    rows = paths.reshape(1, math.prod(paths.shape[:-1]), paths.shape[-1])
    sizes = pack(layers)
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  # which has tensors for sizes, and takes no list of them
        sizes = [int(size) for size in sizes]
    values = _VALUES(flat, rows, sizes)
    return values.reshape(paths.shape[:-1]).to(dtype)


def _check_paths(paths: Tensor, count: int, device: torch.device) -> None:
    memory.check_dense("path_values", "paths", paths)
    if paths.dtype not in INDICES:
        raise TypeError(f"path_values: paths is {paths.dtype}; expected int64, int32 or int16")
    if paths.dim() < 1 or paths.shape[-1] != count + 1:
        raise ValueError(
            f"path_values: paths has shape {tuple(paths.shape)}; expected [P, {count + 1}]: a node of the "
            f"input and one of each of the {count} layers"
        )
    if paths.device != device:
        raise ValueError(f"path_values: paths is on {paths.device} and weights on {device}; expected one device")
