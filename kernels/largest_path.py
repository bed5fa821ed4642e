"""The largest path of a bias-free network: max_p |v(p)|, and the path, by max-plus products of log |W|.

    s_0 = 0,    s_{l+1}[j] = max_i log |W_l[j, i]| + s_l[i]

s_L[j] is the logarithm of the largest |v| among the paths that end in j; the winners of the products, followed back
from the largest s_L[j], are its route.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contract.misuses import misuse_of
from .contract.networks import ALIASED, network_misuses
from .contract.registry import register
from .contract.samples import NAN, normal_inputs, sampled
from .contract.spec import Contender, Misuse, Scaling, Sizes, Spec, Workload
from .contract.workloads import called, forward_bytes, rivals
from .mathematics.network import Layer, Size, as_list, network, nodes_into
from .path_values import path_values_ref
from .path_values.definition import matrices
from .runtime.arguments import FLOATS, under_autocast
from .runtime.tracing import traceable
from .tropical_conv2d import tropical_conv2d
from .tropical_matmul import _FORWARDS
from .tropical_matvec import tropical_matvec

# ------------------------------------------------------------------------------------------------ public


class LargestPath(NamedTuple):
    """The result of `largest_path`."""

    value: Tensor
    route: Tensor


@traceable
def largest_path(
    weights: Iterable[Tensor], *, input_size: Size | None = None, stride: Size = 1, padding: Size = 0
) -> LargestPath:
    """The path p whose value v(p) = Π_l W_l[p_{l+1}, p_l] is largest in magnitude: its value, signed, and its nodes.

    Magnitudes are compared as sums of logarithms, added from the input on in the weights' dtype (16-bit ones in
    float32): they neither overflow nor underflow, and paths that are closer than their rounding may change places.
    Ties, as rounded, go to the lowest node, of the output first, then of each layer before. A zero weight is −∞; where
    every path has one, the value is 0. The first NaN wins, as in torch.max.

    Args:
        weights, input_size, stride, padding: as of `path_values`.

    Returns:
        A named tuple: value, a scalar, that of `path_values(weights, route)`, whose gradient is a subgradient;
        route [L + 1] int64, numbered as the paths of `path_values` are.

    Raises:
        TypeError: weights are of an unsupported type or dtype.
        ValueError: devices, ranks or sizes do not fit, or a layer has no nodes, and so the network no path.
    """
    weights = under_autocast(as_list("largest_path", weights))
    layers = network("largest_path", weights, input_size, stride, padding)
    for index, w in enumerate(weights):
        if w.numel() == 0:
            raise ValueError(f"largest_path: weights[{index}] has shape {tuple(w.shape)}; expected a path through it")
    dtype = torch.promote_types(weights[0].dtype, torch.float32)  # of logarithms and of the product
    node, winners = _winners([w.detach().to(dtype) for w in weights], layers)
    route, factors = [node], []
    for w, winner, layer in zip(reversed(weights), reversed(winners), reversed(layers), strict=True):
        k = winner.gather(0, node)
        if w.dim() == 2:  # a channel is a node, and an edge the node that it comes from
            factors.append(w[node, k].to(dtype))
            node = k
        else:
            factors.append(w.flatten(1)[node // (layer.P * layer.Q), k].to(dtype))
            node = _source(node, k, layer)
        route.append(node)
    value = factors.pop()
    while factors:
        value = value * factors.pop()
    return LargestPath(value.squeeze(0).to(weights[0].dtype), torch.cat(route[::-1]))


def _winners(weights: Sequence[Tensor], layers: Sequence[Layer]) -> tuple[Tensor, list[Tensor]]:
    """The node [1] of the output where the largest path ends; and of each layer's nodes, which of their edges it takes:
    an edge is the tap (c · KH + i) · KW + j, of a Linear layer the node it comes from.
    """
    score = torch.zeros(nodes_into(layers[0]), dtype=weights[0].dtype, device=weights[0].device)
    winners = []
    for w, layer in zip(weights, layers, strict=True):
        logs = w.abs().log_()  # fresh memory costs more than the logarithms: one buffer for this layer, and the next
        if w.dim() == 4:
            image = score.view(layer.C, layer.H, layer.W)
            stride, padding = (layer.SH, layer.SW), (layer.PH, layer.PW)
            score, winner = tropical_conv2d(image, logs, stride=stride, padding=padding, return_indices=True)
        else:
            score, winner = tropical_matvec(logs, score, return_indices=True)
        del logs
        score = score.flatten()
        winners.append(winner.flatten())
    return score.max(-1, keepdim=True).indices, winners


def _source(node: Tensor, k: Tensor, layer: Layer) -> Tensor:
    """The node that edge k of a node comes from."""
    inner = node % (layer.P * layer.Q)
    c, tap = k // (layer.KH * layer.KW), k % (layer.KH * layer.KW)
    y = inner // layer.Q * layer.SH - layer.PH + tap // layer.KW
    x = inner % layer.Q * layer.SW - layer.PW + tap % layer.KW
    return (c * layer.H + y) * layer.W + x


# ------------------------------------------------------------------------------------------------ the op as data


def largest_path_ref(weights, *, input_size: Size | None = None, stride: Size = 1, padding: Size = 0):
    """The oracle: the definition, on the layers' matrices."""
    layers = network("largest_path", weights, input_size, stride, padding)
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    score, winners = torch.zeros(nodes_into(layers[0]), dtype=dtype, device=weights[0].device), []
    for matrix in matrices([w.detach().to(dtype) for w in weights], layers):
        score, winner = (matrix.abs().log() + score).max(1)
        winners.append(winner)
    route = [score.argmax()]
    for winner in reversed(winners):
        route.append(winner[route[-1]])
    route = torch.stack(route[::-1])
    return path_values_ref(weights, route, input_size=input_size, stride=stride, padding=padding), route


def op(*weights: Tensor, return_indices: bool = False, **kwargs):
    route = largest_path(weights, **kwargs)
    return route if return_indices else route.value


def oracle(*weights: Tensor, return_indices: bool = False, **kwargs):
    route = largest_path_ref(weights, **kwargs)
    return route if return_indices else route[0]


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Three layers N → M → N → M of standard normal weights."""
    sizes = (shape["M"], shape["N"]), (shape["N"], shape["M"]), (shape["M"], shape["N"])
    return normal_inputs(seed, dtype, device, *sizes)


def _plain(*weights: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates of each layer materialised."""
    score, winners = weights[0].new_zeros(weights[0].shape[1]), []
    for w in weights:
        score, winner = (w.abs().log() + score).max(1)
        winners.append(winner)
    route = [score.argmax(0, keepdim=True)]
    for winner in reversed(winners):
        route.append(winner[route[-1]])
    nodes = torch.cat(route[::-1])
    factors = [w[j, i] for w, j, i in zip(weights, nodes[1:], nodes, strict=False)]
    return torch.stack(factors).prod(), nodes


FORWARD = Workload(
    "largest path",
    (
        Contender("tropigrad", "ours", called(lambda *weights: largest_path(weights))),
        *rivals(_plain, called),
    ),
    operations=lambda shape: 3 * shape["M"] * shape["N"],
    bytes=forward_bytes(inputs, lambda *weights: ()),
    mix="add_max",
)


@sampled
def samples(add, numbers) -> None:
    """Ties, zeros, signs, overflow, NaN and convolutions."""

    def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [numbers.normal(*shape) for shape in shapes]

    shapes = (7, 5), (9, 7), (4, 9)
    add("one-layer", *normal((3, 5)))
    add("ties", *(numbers.small(*shape) for shape in shapes))
    add("all-tied", *(torch.ones(shape) for shape in shapes))
    add("zero", *(torch.zeros(shape) for shape in shapes))
    add("one-path", torch.eye(4)[:, 2:3], torch.eye(4), torch.eye(4)[2:3])
    add("overflow", *(1e30 * w for w in normal(*shapes)))
    add("underflow", *(1e-30 * w for w in normal(*shapes)))
    first, *rest = normal(*shapes)
    first[3, 2] = NAN
    add("nan", first, *rest)
    add("pointwise", *normal((4, 3, 1, 1), (2, 4, 1, 1)), input_size=(2, 3))
    add("flattened", *normal((4, 2, 3, 2), (5, 4, 2, 2), (6, 100)), input_size=5, padding=[1, 0])
    add("strided", *normal((4, 2, 3, 3), (3, 4, 2, 2)), input_size=(9, 8), stride=[(2, 1), 2], padding=[(1, 2), 0])


def misuses(device: torch.device) -> list[Misuse]:
    w, none, bad = torch.zeros(3, 2, device=device), torch.zeros(0, 3, device=device), misuse_of(largest_path)
    no_path = r"weights\[1\] has shape \(0, 3\); expected a path"
    return [*network_misuses(largest_path, device), bad("no-path", ValueError, no_path, [w, none])]


SPEC = register(
    Spec(
        name="largest_path",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={"256": {"M": 256, "N": 256}, "1024": {"M": 1024, "N": 1024}},
        workloads=(FORWARD,),
        variants={"linear": {}},
        dtypes=FLOATS,
        small_shapes=({"M": 1, "N": 1}, {"M": 11, "N": 7}, {"M": 5, "N": 9}),
        samples=samples,
        particular_misuses=misuses,
        implementations=_FORWARDS,
        fewer_backends=lambda kwargs: ("torch", "cpp", "triton"),
        middle={"M": 70, "N": 90},
        scalings=lambda kwargs: (Scaling((1, 0, 0), 1), Scaling((1, -1, 0), 0), Scaling((-1, 0, 1), 0)),
        aliased=ALIASED,
    )
)
