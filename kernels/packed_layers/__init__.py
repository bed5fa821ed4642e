"""Linear layers and convolutions that keep their ±1 input as bits: y = x Wᵀ + b, and y = W ∗ x + b.

    dx = dy W              needs the weight alone
    dW = Σ_n dy[n] x[n]    needs x: it is unpacked a few samples at a time, so that it is never whole in memory again

The value is that of torch's own operation, to the bit. The sum over samples is made chunk by chunk, so dW agrees with
torch's within rounding. Where x held NaN, or on a GPU anything but ±1, dW is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, linear, pad

from ..pack_bits import HAS_OTHERS, PACK, UNPACK
from ..runtime.arguments import looks_at_values
from ..runtime.dispatch import Gradient, operator
from ..runtime.vmap import one_by_one

__all__ = ["packed_conv2d", "packed_linear"]

# Elements that are unpacked at a time: on a CPU 1 MiB of float32, from where on a step takes as long as with one chunk
# (2^16 up to 1.25 times as long, as products of few samples are slower); on a GPU enough to fill it.
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 24

# ------------------------------------------------------------------------------------------------ bits


def _packed(x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """x [N, K] -> bits uint8 [N, bytes] and flags int32 []."""
    bits, flags = PACK.dispatched(x, True)
    if looks_at_values(x.device) and int(flags) & HAS_OTHERS:
        at = int(((x != 1) & (x != -1) & (x == x)).flatten().byte().argmax())
        raise ValueError(
            f"{layer}: the input holds {x.flatten()[at].item():g}; expected -1 and 1 alone, as a bit is kept of each "
            f"element: quantize the input, or take torch.nn.{layer.removeprefix('Packed')}"
        )
    return bits, flags


def _no_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty((0, 0), dtype=torch.uint8), x.new_zeros((), dtype=torch.int32)


def _packed_fake(x: Tensor, samples, size) -> tuple[Tensor, Tensor]:
    return x.new_empty((samples, (size + 7) // 8), dtype=torch.uint8), x.new_empty((), dtype=torch.int32)


def _chunks(bits: Tensor, size: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(the first sample, samples [n, size]) of bits [N, bytes], a chunk after the other."""
    count = max(1, _CHUNK.get(bits.device.type, _CHUNK_ELSEWHERE) // max(1, size))
    for begin in range(0, len(bits), count):
        yield begin, UNPACK.dispatched(bits[begin : begin + count], size, "sign", dtype)


def _with(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum so far and the next chunk's part: of 16 bits in float32, which would lose a little at each chunk."""
    if total is None:
        return part
    return (total.float() if part.dtype.itemsize == 2 else total).add_(part)


def _gradient_of(weight: Tensor, total: Tensor | None, flags: Tensor) -> Tensor:
    """The sum of all chunks in the weight's layout; NaN where x held what bits do not."""
    if total is None or total.dtype != weight.dtype or total.stride() != weight.stride():
        gradient = torch.empty_like(weight)
        total = gradient.zero_() if total is None else gradient.copy_(total)
    if total.device.type != "cpu":  # where looking at the flags would wait
        return total.masked_fill_(flags != 0, float("nan"))
    return total.fill_(float("nan")) if int(flags) else total


def _check_foreseen(needed: bool, packs: bool) -> None:
    if needed and not packs:
        raise RuntimeError(
            "packed layers: the weight needs a gradient for which no input was kept; expected "
            "weight.requires_grad=True when the layer is called"
        )


def _no_second_gradient(grads, saved, sizes, needs, *options) -> NoReturn:
    raise NotImplementedError(
        "packed layers are differentiated once; expected no create_graph=True: for second derivatives take "
        "torch.nn.Linear or torch.nn.Conv2d"
    )


def _needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [gradient for gradient, needed in zip(gradients, needs, strict=False) if needed]


# ------------------------------------------------------------------------------------------------ linear


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, packs: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., I], weight [O, I], bias [O] -> y [..., O]; bits of x [N, bytes] and flags, where it packs."""
    y = _linear_value(x, weight, bias)
    return y, *(_packed(x.reshape(-1, x.shape[-1]), "PackedLinear") if packs else _no_bits(x))


def _linear_value(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's, with the roundings that it has where the weight requires a gradient: it folds more than it does here."""
    if x.dim() < 3 or x.is_contiguous():
        return linear(x, weight, bias)
    y = (x.reshape(-1, x.shape[-1]) @ weight.t()).view(*x.shape[:-1], len(weight))
    return y if bias is None else y.add_(bias)


def _linear_fake(x, weight, bias, packs):
    y = _linear_value(x, weight, bias)
    return y, *(_packed_fake(x, x[..., 0].numel(), x.shape[-1]) if packs else _no_bits(x))


def _linear_backward(
    g: Tensor, weight: Tensor, bits: Tensor, flags: Tensor, needs_x: bool, needs_weight: bool, needs_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """g [N, O] -> the gradients of x [N, I], the weight and the bias; [0] where not needed."""
    dx = g @ weight if needs_x else g.new_empty(0)
    db = g.sum(0) if needs_bias else g.new_empty(0)
    if not needs_weight:
        return dx, g.new_empty(0), db
    total = None
    for at, x in _chunks(bits, weight.shape[1], g.dtype):
        of_chunk = g[at : at + len(x)].t()
        if total is None or g.dtype.itemsize == 2:
            total = _with(total, of_chunk @ x)
        else:
            total.addmm_(of_chunk, x)
    return dx, _gradient_of(weight, total, flags), db


def _linear_backward_fake(g, weight, bits, flags, needs_x, needs_weight, needs_bias):
    dx = g.new_empty((g.shape[0], weight.shape[1]) if needs_x else (0,))
    dw = torch.empty_like(weight) if needs_weight else g.new_empty(0)
    return dx, dw, g.new_empty((g.shape[1],) if needs_bias else (0,))


def _linear_gradient(grads, saved, sizes, needs, packs) -> list[Tensor]:
    (g,), (weight, bits, flags) = grads, saved
    _check_foreseen(needs[1], packs)
    dx, *others = _LINEAR_BACKWARD(g.reshape(-1, g.shape[-1]), weight, bits, flags, *needs[:2], any(needs[2:]))
    return _needed((dx.view(sizes[: g.dim()]) if needs[0] else dx, *others), needs)


_LINEAR_BACKWARD = operator(
    "packed_linear_backward(Tensor g, Tensor weight, Tensor bits, Tensor flags, bool needs_x, bool needs_weight, "
    "bool needs_bias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _linear_backward,
    fake=_linear_backward_fake,
    vmap=one_by_one("packed_linear_backward"),
    gradient=Gradient(_no_second_gradient),
)
packed_linear = operator(
    "packed_linear(Tensor x, Tensor weight, Tensor? bias, bool packs) -> (Tensor y, Tensor bits, Tensor flags)",
    _linear,
    fake=_linear_fake,
    vmap=one_by_one("packed_linear"),
    gradient=Gradient(_linear_gradient, inputs=(1,), outputs=(1, 2)),
)

# ------------------------------------------------------------------------------------------------ convolution


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    margins: Sequence[int],
    channels_last: bool,
    packs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, C, H, W], weight [O, C / groups, kh, kw], bias [O] -> y; bits of x [N, bytes] and flags, where it packs.

    margins: (left, right, above, below), padded before the convolution by `mode`, as torch.nn.functional.pad takes it.
    channels_last: how x lies in memory, and so the order of a sample's bits.
    """
    y = conv2d(_with_margins(x, mode, margins), weight, bias, stride, padding, dilation, groups)
    if not packs:
        return y, *_no_bits(x)
    N, C, H, W = x.shape
    return y, *_packed((x.permute(0, 2, 3, 1) if channels_last else x).reshape(N, C * H * W), "PackedConv2d")


def _conv2d_fake(x, weight, bias, stride, padding, dilation, groups, mode, margins, channels_last, packs):
    y = conv2d(_with_margins(x, mode, margins), weight, bias, stride, padding, dilation, groups)
    samples, C, H, W = x.shape
    return y, *(_packed_fake(x, samples, C * H * W) if packs else _no_bits(x))


def _with_margins(x: Tensor, mode: str, margins: Sequence[int]) -> Tensor:
    return pad(x, list(margins), mode).to(x.dtype) if any(margins) else x  # autocast would pad in float32


def _conv2d_backward(
    g: Tensor,
    weight: Tensor,
    bits: Tensor,
    flags: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    margins: Sequence[int],
    channels_last: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """g [N, O, P, Q], size of x [N, C, H, W] -> the gradients of x, weight and bias; [0] where not needed."""
    C, H, W = size[1:]
    order = torch.channels_last if channels_last else torch.contiguous_format
    dx = dw = db = None
    if needs_x:
        left, right, above, below = margins
        padded = H + above + below, W + left + right
        dx = _input_gradient(g, weight, padded, stride, padding, dilation, groups)
        dx = _without_margins(dx, size, mode, margins).contiguous(memory_format=order)
    if needs_weight:
        options = stride, padding, dilation, False, [0, 0], groups, [False, True, needs_bias]
        total = None
        for at, x in _chunks(bits, C * H * W, g.dtype):
            x = x.view(-1, H, W, C).permute(0, 3, 1, 2) if channels_last else x.view(-1, C, H, W)
            x, of_chunk = _with_margins(x, mode, margins), g[at : at + len(x)]
            parts = torch.ops.aten.convolution_backward.default(of_chunk, x, weight, [len(weight)], *options)
            total, db = _with(total, parts[1]), _with(db, parts[2]) if needs_bias else None
        dw = _gradient_of(weight, total, flags)
        db = db if db is None else db.to(g.dtype)
    if needs_bias and db is None:
        db = g.sum((0, 2, 3))
    nothing = g.new_empty(0)
    return nothing if dx is None else dx, nothing if dw is None else dw, nothing if db is None else db


def _input_gradient(g: Tensor, weight: Tensor, size: Sequence[int], stride, padding, dilation, groups: int) -> Tensor:
    """The gradient of the rows and columns that were convolved, of this size: the transposed convolution.

    torch's convolution_backward would ask for the input, of which it reads the size alone, and copy a stand-in.
    """
    if len(g) == 0:
        return g.new_empty((0, weight.shape[1] * groups, *size))
    left_over = [
        size[i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1 - stride[i] * (g.shape[2 + i] - 1)
        for i in range(2)
    ]
    return conv_transpose2d(g, weight, None, stride, padding, left_over, groups, dilation)


def _without_margins(dx: Tensor, size: Sequence[int], mode: str, margins: Sequence[int]) -> Tensor:
    """The gradient of what was padded."""
    left, right, above, below = margins
    if not any(margins):
        return dx
    H, W = size[2:]
    if mode == "circular":
        for axis, length, before, after in ((2, H, above, below), (3, W, left, right)):
            inner = dx.narrow(axis, before, length).clone()
            inner.narrow(axis, length - before, before).add_(dx.narrow(axis, 0, before))
            inner.narrow(axis, 0, after).add_(dx.narrow(axis, before + length, after))
            dx = inner
        return dx
    if mode == "constant":
        return dx[:, :, above : above + H, left : left + W]
    backward = (
        torch.ops.aten.reflection_pad2d_backward if mode == "reflect" else torch.ops.aten.replication_pad2d_backward
    )
    return backward.default(dx, dx.new_empty(1).expand(*size), list(margins)) if len(dx) else dx.new_empty(*size)


def _conv2d_backward_fake(
    g, weight, bits, flags, size, stride, padding, dilation, groups, mode, margins, channels_last,
    needs_x, needs_weight, needs_bias,
):  # fmt: skip
    order = torch.channels_last if channels_last else torch.contiguous_format
    dx = g.new_empty(size).contiguous(memory_format=order) if needs_x else g.new_empty(0)
    dw = torch.empty_like(weight) if needs_weight else g.new_empty(0)
    return dx, dw, g.new_empty((g.shape[1],) if needs_bias else (0,))


def _conv2d_gradient(grads, saved, sizes, needs, *options) -> list[Tensor]:
    (g,), (weight, bits, flags) = grads, saved
    *options, packs = options
    _check_foreseen(needs[1], packs)
    gradients = _CONV2D_BACKWARD(g, weight, bits, flags, sizes[:4], *options, *needs[:2], any(needs[2:]))
    return _needed(gradients, needs)


_OPTIONS = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str mode, SymInt[] margins, "
    "bool channels_last"
)
_CONV2D_BACKWARD = operator(
    f"packed_conv2d_backward(Tensor g, Tensor weight, Tensor bits, Tensor flags, SymInt[] size, {_OPTIONS}, "
    "bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _conv2d_backward,
    fake=_conv2d_backward_fake,
    vmap=one_by_one("packed_conv2d_backward"),
    gradient=Gradient(_no_second_gradient),
)
packed_conv2d = operator(
    f"packed_conv2d(Tensor x, Tensor weight, Tensor? bias, {_OPTIONS}, bool packs) "
    "-> (Tensor y, Tensor bits, Tensor flags)",
    _conv2d,
    fake=_conv2d_fake,
    vmap=one_by_one("packed_conv2d"),
    gradient=Gradient(_conv2d_gradient, inputs=(1,), outputs=(1, 2)),
)
