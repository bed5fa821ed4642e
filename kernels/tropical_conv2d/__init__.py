"""Max-plus and min-plus convolution: y[o, p, q] = max_{c, i, j} x[c, p·s − pad + i·d, q·s − pad + j·d] + w[o, c, i, j].

Grey dilation and erosion, in the words of mathematical morphology. Backward routes dy[o, p, q] to the winning tap
k = (c·kh + i)·kw + j, in x and in w: O(outputs) work and memory. Nothing is unfolded. Ties: smallest k. NaN: the first
one wins, as in torch.max. A tap in the padding is no candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..mathematics.factors import check_candidates, check_nan, check_tensors, check_winners, under_autocast
from ..mathematics.semiring import candidates, semiring_zero, value_dtype, winner_dtype
from ..runtime.arguments import as_pair, is_integer
from ..runtime.dispatch import Gradient, operator
from ..runtime.implementations import Implementations
from ..runtime.sharded import is_sharded
from ..runtime.tracing import traceable
from ..runtime.vmap import inner_batch, join_batch, leave_batch, mapped_first
from . import by_cpp, by_triton, sharded
from .definition import SEMIRINGS, Window, tropical_conv2d_ref

__all__ = ["SEMIRINGS", "TropicalConv2d", "Window", "tropical_conv2d", "tropical_conv2d_ref"]

_Pair = int | tuple[int, int]

# ------------------------------------------------------------------------------------------------ the convolution


def _shape(x: Tensor, weight: Tensor, window: Window):
    """[B, O, P, Q] of the outputs."""
    P, Q = (window.outputs(axis, x.shape[2 + axis], weight.shape[2 + axis]) for axis in (0, 1))
    return x.shape[0], weight.shape[0], P, Q


def _forward(x, weight, stride, padding, dilation, groups, semiring, with_winners, ignore_nan):
    """x [B, C, H, W], weight [O, C / groups, kh, kw] -> values and winners [B, O, P, Q]; winners [0] unasked."""
    window = Window(stride, padding, dilation)
    shape = _shape(x, weight, window)
    if x.numel() * weight.numel() == 0:  # no output, or no candidate
        dtype = value_dtype(x.dtype)
        values = x.new_full(shape, semiring_zero(semiring, dtype), dtype=dtype)
        return values, _no_winners(x, weight, shape if with_winners else (0,))
    return _FORWARDS.of(x)(x, weight, window, groups, semiring, with_winners, ignore_nan)


def _fake(x, weight, stride, padding, dilation, groups, semiring, with_winners, ignore_nan):
    shape = _shape(x, weight, Window(stride, padding, dilation))
    winners = x.new_empty(shape if with_winners else (0,), dtype=winner_dtype(weight.shape[1:].numel()))
    return x.new_empty(shape, dtype=value_dtype(x.dtype)), winners


def _scatter(dy, winners, x_shape, weight_shape, stride, padding, dilation, groups, needs_x, needs_weight):
    """dy, winners [B, O, P, Q] -> dx and dweight of these shapes, or [0] where not needed."""
    window = Window(stride, padding, dilation)
    dx, dweight = dy.new_zeros(x_shape if needs_x else (0,)), dy.new_zeros(weight_shape if needs_weight else (0,))
    if dx.numel() + dweight.numel() == 0 or dy.numel() * math.prod(x_shape) * math.prod(weight_shape) == 0:
        return dx, dweight  # nothing is wanted, or nobody has won
    chosen = _SCATTERS.backend_of(dy)
    if chosen == "triton" and torch.are_deterministic_algorithms_enabled():
        chosen = "torch"  # the Triton kernel adds atomically, in any order
    if chosen != "cpp":
        check_winners("tropical_conv2d_scatter", winners, math.prod(weight_shape[1:]))
    return _SCATTERS.functions[chosen](dy, winners, x_shape, weight_shape, window, groups, needs_x, needs_weight)


def _scatter_fake(dy, winners, x_shape, weight_shape, stride, padding, dilation, groups, needs_x, needs_weight):
    return dy.new_empty(x_shape if needs_x else (0,)), dy.new_empty(weight_shape if needs_weight else (0,))


def _no_winners(x: Tensor, weight: Tensor, shape) -> Tensor:
    return torch.full(shape, -1, dtype=winner_dtype(weight.shape[1:].numel()), device=x.device)


def _forward_by_taps(x, weight, window, groups, semiring, with_winners, ignore_nan):
    """The definition, one tap at a time, at the outputs for which it is inside the image."""
    shape, (F, channels, kh, kw) = _shape(x, weight, window), weight.unflatten(0, (groups, -1)).shape[1:]
    dtype = value_dtype(x.dtype)
    values = x.new_full(shape, semiring_zero(semiring, dtype), dtype=dtype)
    winners = _no_winners(x, weight, shape)
    best, winner = (y.unflatten(1, (groups, F)) for y in (values, winners))
    images = x.unflatten(1, (groups, 1, channels))
    filters = weight.unflatten(0, (groups, F)).unsqueeze(-1).unsqueeze(-1)
    for k in range(channels * kh * kw):
        c, i, j = k // (kh * kw), k // kw % kh, k % kw
        (outputs_p, rows), (outputs_q, columns) = (
            _inside(window, axis, tap, x.shape[2 + axis], shape[2 + axis]) for axis, tap in ((0, i), (1, j))
        )
        z = candidates(images[:, :, :, c, rows, columns], filters[:, :, c, i, j], semiring)
        b, w = best[..., outputs_p, outputs_q], winner[..., outputs_p, outputs_q]
        wins = (z < b if semiring == "min_plus" else z > b) | (w < 0)  # strict, so an earlier k keeps a tie
        # the first NaN enters and nothing leaves it; or none does
        wins = wins & ~z.isnan() if ignore_nan else wins | (z.isnan() & ~b.isnan())
        b.copy_(torch.where(wins, z, b))
        w.masked_fill_(wins, k)
    return values, winners if with_winners else winners.new_empty(0)


def _inside(window: Window, axis: int, tap: int, size: int, outputs: int) -> tuple[slice, slice]:
    """The outputs for which a tap is inside the image, and where in the image it then is."""
    stride, start = window.stride[axis], window.position(axis, 0, tap)
    first = max(0, -(start // stride))
    last = min(outputs, (size - 1 - start) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(start + first * stride, start + (last - 1) * stride + 1, stride)


def _routes(winners: Tensor, x_shape, weight_shape, window: Window, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradient of each output goes: in an image of x [C · H · W], in its filter [K], and whether it does."""
    (_, O, P, Q), (_, _, H, W), (_, channels, kh, kw) = winners.shape, x_shape, weight_shape
    k = winners.long()
    p, q, o = (torch.arange(size, device=winners.device) for size in (P, Q, O))
    row = window.position(0, p.unsqueeze(-1), k // kw % kh)
    column = window.position(1, q, k % kw)
    channel = (o // (O // groups)).view(O, 1, 1) * channels + k // (kh * kw)
    inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
    won = (k >= 0) & (k < channels * kh * kw) & inside
    return ((channel * H + row) * W + column).where(won, 0), k.where(won, 0), won


def _scatter_by_torch(dy, winners, x_shape, weight_shape, window, groups, needs_x, needs_weight):
    """By scatter_add over flat positions, the form that torch makes deterministic on request."""
    in_x, in_filter, won = _routes(winners, x_shape, weight_shape, window, groups)
    wide = torch.float32 if dy.dtype in (torch.float16, torch.bfloat16) else dy.dtype
    dx = dy.new_zeros(x_shape if needs_x else (0,), dtype=wide)
    dweight = dy.new_zeros(weight_shape if needs_weight else (0,), dtype=wide)
    routed = dy.to(wide).where(won, 0)
    if needs_x:
        dx.flatten(1).scatter_add_(1, in_x.flatten(1), routed.flatten(1))
    if needs_weight:
        dweight.flatten(1).scatter_add_(1, *(y.transpose(0, 1).flatten(1) for y in (in_filter, routed)))
    return dx.to(dy.dtype), dweight.to(dy.dtype)


_FORWARDS = Implementations(
    "tropical_conv2d", source=by_cpp.SOURCE, cpp=by_cpp.forward, triton=by_triton.forward, torch=_forward_by_taps
)
_SCATTERS = Implementations(
    "tropical_conv2d_scatter",
    source=by_cpp.SOURCE,
    cpp=by_cpp.scatter,
    triton=by_triton.scatter,
    torch=_scatter_by_torch,
)


def _side_by_side(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, C, ...] mapped over `dim` -> [B, size · C, ...]: the mapped dimension joins the groups."""
    return mapped_first(x, dim, size).transpose(0, 1).flatten(1, 2)


def _mapped(info, dims, x, weight, stride, padding, dilation, groups, *options):
    size, with_winners = info.batch_size, options[1]
    op = _CONV2D.dispatched
    if size == 0 and dims[1] is not None:  # of no weights any will do
        weight, dims = weight.new_zeros(weight.movedim(dims[1], 0).shape[1:]), (dims[0], None)
    if dims[1] is None:  # one weight for all: more images
        inner, (x,) = inner_batch(x, dims[0]), join_batch((x,), dims[:1], size)
        results = op(x, weight, stride, padding, dilation, groups, *options)
        return leave_batch(results, (True, with_winners), size, inner)
    x, weight = _side_by_side(x, dims[0], size), weight.movedim(dims[1], 0).flatten(0, 1)
    values, winners = op(x, weight, stride, padding, dilation, groups * size, *options)
    if not with_winners:
        return (values.unflatten(1, (size, -1)), winners), (1, None)
    return (values.unflatten(1, (size, -1)), winners.unflatten(1, (size, -1))), (1, 1)


def _scatter_mapped(
    info, dims, dy, winners, x_shape, weight_shape, stride, padding, dilation, groups, needs_x, needs_weight
):
    size, mapped = info.batch_size, ((1 if needs_x else None), (0 if needs_weight else None))
    if size == 0:
        shapes = (x_shape[0], 0, *x_shape[1:]) if needs_x else (0,), (0, *weight_shape) if needs_weight else (0,)
        return tuple(dy.new_empty(shape) for shape in shapes), mapped
    dy, winners = (_side_by_side(y, dim, size) for y, dim in zip((dy, winners), dims[:2], strict=True))
    dx, dweight = _SCATTER.dispatched(
        dy,
        winners,
        [x_shape[0], size * x_shape[1], *x_shape[2:]],
        [size * weight_shape[0], *weight_shape[1:]],
        stride,
        padding,
        dilation,
        groups * size,
        needs_x,
        needs_weight,
    )
    gradients = zip((dx, dweight), mapped, (x_shape[1], weight_shape[0]), strict=True)
    return tuple(y if dim is None else y.unflatten(dim, (size, n)) for y, dim, n in gradients), mapped


# ------------------------------------------------------------------------------------------------ gradients


def _gradient(grads, saved, sizes, needs, stride, padding, dilation, groups, *options) -> list[Tensor]:
    """dy -> dx and dweight, as far as they are needed: each output's gradient goes to its winner."""
    (dy,), (winners,) = grads, saved
    gradients = _SCATTER(dy, winners, sizes[:4], sizes[4:], stride, padding, dilation, groups, *needs)
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _second_gradient(
    grads, saved, sizes, needs, x_shape, weight_shape, stride, padding, dilation, groups, needs_x, needs_weight
) -> list[Tensor]:
    """(ddx, ddweight) -> what flows to dy: gathers, in torch, differentiable again."""
    (ddx, ddweight), (winners,) = grads, saved
    routed = (ddx if ddweight is None else ddweight).new_zeros(winners.shape)
    if winners.numel():
        in_x, in_filter, won = _routes(winners, x_shape, weight_shape, Window(stride, padding, dilation), groups)
        if needs_x and ddx is not None:
            pixels = ddx.reshape(len(winners), ddx.shape[1:].numel())
            routed = routed + pixels.gather(1, in_x.flatten(1)).view(winners.shape)
        if needs_weight and ddweight is not None:
            taps = ddweight.reshape(1, len(ddweight), ddweight.shape[1:].numel())
            filters = taps.expand(len(winners), *taps.shape[1:])
            routed = routed + filters.gather(2, in_filter.flatten(2)).view(winners.shape)
        routed = routed.where(won, 0)
    return [routed]


# ------------------------------------------------------------------------------------------------ operators

_WINDOW = "int[] stride, int[] padding, int[] dilation, int groups"
_SCATTER = operator(
    f"tropical_conv2d_scatter(Tensor dy, Tensor winners, SymInt[] x_shape, SymInt[] weight_shape, {_WINDOW}, "
    "bool needs_x, bool needs_weight) -> (Tensor dx, Tensor dweight)",
    _scatter,
    fake=_scatter_fake,
    vmap=_scatter_mapped,
    gradient=Gradient(_second_gradient, inputs=(1,)),
)
_CONV2D = operator(
    f"tropical_conv2d(Tensor x, Tensor weight, {_WINDOW}, str semiring, bool with_winners, bool ignore_nan) "
    "-> (Tensor values, Tensor winners)",
    _forward,
    fake=_fake,
    vmap=_mapped,
    gradient=Gradient(_gradient, outputs=(1,), flag=7),
)


@register_flop_formula(torch.ops.tropigrad.tropical_conv2d)
def _flops(x, weight: Sequence[int], *options, out_shape: Sequence[Sequence[int]], **named) -> int:
    """A sum and a comparison for each output and each element of its window."""
    return 2 * math.prod(out_shape[0]) * math.prod(weight[1:])


@register_flop_formula(torch.ops.tropigrad.tropical_conv2d_scatter)
def _scatter_flops(dy: Sequence[int], *options, **named) -> int:
    """An addition for each output and each gradient that is asked for."""
    return sum(options[-2:]) * math.prod(dy)


# ------------------------------------------------------------------------------------------------ public


class TropicalConv2d(NamedTuple):
    """The result of `tropical_conv2d(..., return_indices=True)`, named as that of torch.max."""

    values: Tensor
    indices: Tensor


@overload
def tropical_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    semiring: str = "max_plus",
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    return_indices: Literal[False] = False,
    nan: str = "propagate",
) -> Tensor: ...
@overload
def tropical_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    semiring: str = "max_plus",
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    return_indices: Literal[True],
    nan: str = "propagate",
) -> TropicalConv2d: ...
@traceable
def tropical_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    semiring: str = "max_plus",
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    return_indices: bool = False,
    nan: str = "propagate",
) -> Tensor | TropicalConv2d:
    """Max-plus or min-plus convolution of images, laid out as torch.nn.functional.conv2d lays them out.

        y[b, o, p, q] = max_{c, i, j} x[b, c, p·s − pad + i·d, q·s − pad + j·d] + weight[o, c, i, j]

    with c over the channels of o's group. With groups = C it is the grey dilation by the mirrored structuring function
    weight[o, 0]; min_plus with −weight is the erosion. A tap in the padding is no candidate: the padding holds the
    semiring's zero, −∞ for max, and never makes a NaN.

    Exact: each sum is rounded to the dtype, then compared, so every backend gives the same values and winners (the sign
    of a zero and a NaN's payload aside). Ties go to the smallest k = (c·kh + i)·kw + j, in the gradient too: a
    subgradient that routes all of dy to one winner. Integer sums saturate at the dtype's bounds, which stand for ∓∞.
    Source: Angulo, "Some open questions on morphological operators and representations in the deep learning era", 2021;
    Serra, "Image Analysis and Mathematical Morphology", 1982.

    Args:
        x: [B, C, H, W] or [C, H, W] float64, float32, float16, bfloat16, int32, int16 or int8, any strides.
        weight: [O, C / groups, kh, kw], the dtype and device of x.
        semiring: "max_plus" or "min_plus".
        stride, padding, dilation: s, pad and d in pixels, one int or a pair for rows and columns. The padding is
            narrower than the window, of d·(kh − 1) + 1 rows.
        groups: of channels and of filters, which see the channels of their own group.
        return_indices: also return the winners k.
        nan: "propagate": the first NaN candidate wins, as in torch.max. "ignore": NaN candidates are skipped.

    Returns:
        y [B, O, P, Q] or [O, P, Q], P = ⌊(H + 2 pad − d·(kh − 1) − 1) / s⌋ + 1, in the dtype of x, int32 for int8; with
        return_indices a named tuple (values, indices), indices int64 within the group. Where there is no candidate
        the value is the semiring's zero and the index −1. Differentiable any number of times in reverse mode; forward
        mode raises NotImplementedError. Under autocast nothing is cast down; two float dtypes meet in the wider.
        Of DTensors it is a DTensor, of the bits of one process: shards of the images stay where they are, or else those
        of the filters of one group; other shards are gathered first.

    Raises:
        TypeError: x or weight is no strided tensor of a supported dtype, or their dtypes differ.
        ValueError: devices, ranks, channels or groups do not fit, the padding is as wide as the window, the window is
            larger than the padded image or has more than 2³¹ taps, or an option is not one of those above.
    """
    if is_sharded(x, weight):
        options = {"semiring": semiring, "stride": stride, "padding": padding, "dilation": dilation, "nan": nan}
        return sharded.convolution(tropical_conv2d, x, weight, groups, return_indices, **options)
    x, weight = under_autocast(x, weight, semiring)
    window = _checked(x, weight, stride, padding, dilation, groups, semiring, nan)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    y, winners = _CONV2D(images, weight, *window, int(groups), semiring, return_indices, nan == "ignore")
    if x.dim() == 3:
        y, winners = y.squeeze(0), winners.squeeze(0) if return_indices else winners
    return TropicalConv2d(y, winners.long()) if return_indices else y


def _checked(x, weight, stride, padding, dilation, groups, semiring, nan) -> Window:
    """The window, if all of it fits."""
    op = "tropical_conv2d"
    check_tensors(op, x=x, weight=weight)
    if x.dim() not in (3, 4):
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; expected [B, C, H, W] or [C, H, W]")
    if weight.dim() != 4 or weight.shape[2] < 1 or weight.shape[3] < 1:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; expected [O, C / groups, kh, kw], kh and kw at least 1"
        )
    if semiring not in SEMIRINGS:
        raise ValueError(f"{op}: semiring is {semiring!r}; expected 'max_plus' or 'min_plus'")
    check_nan(op, nan)
    C, filters = x.shape[-3], weight.shape[0]
    if not is_integer(groups) or groups < 1 or C % groups or filters % groups:
        raise ValueError(
            f"{op}: groups is {groups!r}; expected a divisor of x's {C} channels and of weight's {filters} filters"
        )
    if weight.shape[1] != C // groups:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; expected [O, {C // groups}, kh, kw], "
            f"for x's {C} channels in {groups} group{'s' * (groups > 1)}"
        )
    check_candidates(op, "weight", weight.shape[1:].numel(), tuple(weight.shape))
    window = Window(
        _pair(op, "stride", stride, 1), _pair(op, "padding", padding, 0), _pair(op, "dilation", dilation, 1)
    )
    covers = tuple(window.dilation[axis] * (weight.shape[2 + axis] - 1) + 1 for axis in (0, 1))
    if any(pad >= size for pad, size in zip(window.padding, covers, strict=True)):
        raise ValueError(
            f"{op}: padding is {padding}; expected less than the window's {covers[0]} × {covers[1]} pixels: "
            "further out an output sees nothing but padding"
        )
    if any(window.outputs(axis, x.shape[axis - 2], weight.shape[2 + axis]) < 1 for axis in (0, 1)):
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}; expected at least the window's {covers[0]} × {covers[1]} pixels, "
            f"less twice the padding {window.padding}"
        )
    return window


def _pair(op: str, name: str, value: _Pair, least: int) -> tuple[int, int]:
    pair = as_pair(value, least)
    if pair is None:
        raise ValueError(f"{op}: {name} is {value!r}; expected an int or a pair of ints, at least {least}")
    return pair
