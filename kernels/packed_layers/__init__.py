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
from torch.nn.functional import conv2d, linear, pad

from ..pack_bits import HAS_OTHERS, PACK, UNPACK
from ..runtime.arguments import looks_at_values
from ..runtime.dispatch import Gradient, operator

__all__ = ["packed_conv2d", "packed_linear"]

# Elements that are unpacked at a time: on a CPU 1 MiB of float32; on a GPU enough to fill it, beside which a launch is
# short.
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


def _total(parts: Iterator[Tensor], weight: Tensor, flags: Tensor) -> Tensor:
    """The sum of the chunks' gradients of the weight; 16 bits in float32, which would lose a little at each chunk.

    NaN where x held what bits do not.
    """
    total = next(parts, None)
    for part in parts:
        total = (total.float() if part.dtype.itemsize == 2 else total).add_(part)
    gradient = torch.empty_like(weight)
    gradient = gradient.zero_() if total is None else gradient.copy_(total)
    if gradient.device.type != "cpu":  # where looking at the flags would wait
        return gradient.masked_fill_(flags != 0, float("nan"))
    return gradient.fill_(float("nan")) if int(flags) else gradient


def _check_foreseen(needed: bool, packs: bool) -> None:
    if needed and not packs:
        raise RuntimeError(
            "packed layers: the weight needs a gradient for which no input was kept; expected "
            "weight.requires_grad=True when the layer is called"
        )


def _mapped(name: str):
    """A batching rule that calls the operator for each map: weights of their own share no product."""

    def mapped(info, dims, *args):
        one = getattr(torch.ops.tropigrad, name).default
        each = [
            one(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(x) for x in zip(*each, strict=True))
        return stacked, (0,) * len(stacked)

    return mapped


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
    y = linear(x, weight, bias)
    return y, *(_packed(x.reshape(-1, x.shape[-1]), "PackedLinear") if packs else _no_bits(x))


def _linear_fake(x, weight, bias, packs):
    y = linear(x, weight, bias)
    return y, *(_packed_fake(x, x[..., 0].numel(), x.shape[-1]) if packs else _no_bits(x))


def _linear_backward(
    g: Tensor, weight: Tensor, bits: Tensor, flags: Tensor, needs_x: bool, needs_weight: bool, needs_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """g [N, O] -> the gradients of x [N, I], the weight and the bias; [0] where not needed."""
    dx = g @ weight if needs_x else g.new_empty(0)
    db = g.sum(0) if needs_bias else g.new_empty(0)
    if not needs_weight:
        return dx, g.new_empty(0), db
    parts = (g[at : at + len(x)].t() @ x for at, x in _chunks(bits, weight.shape[1], g.dtype))
    return dx, _total(parts, weight, flags), db


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
    vmap=_mapped("packed_linear_backward"),
    gradient=Gradient(_no_second_gradient),
)
packed_linear = operator(
    "packed_linear(Tensor x, Tensor weight, Tensor? bias, bool packs) -> (Tensor y, Tensor bits, Tensor flags)",
    _linear,
    fake=_linear_fake,
    vmap=_mapped("packed_linear"),
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
    return pad(x, list(margins), mode) if any(margins) else x


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
    N, C, H, W = size
    options = stride, padding, dilation, False, [0, 0], groups
    left, right, above, below = margins
    dx = dw = db = g.new_empty(0)
    if needs_x:
        # of x nothing is read but the size
        like = g.new_empty(1).expand(N, C, H + above + below, W + left + right)
        dx = _convolution_backward(g, like, weight, options, 0)
        dx = _without_margins(dx, size, mode, margins)
        dx = dx.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if needs_bias:
        db = g.sum((0, 2, 3))
    if needs_weight:

        def parts() -> Iterator[Tensor]:
            for at, x in _chunks(bits, C * H * W, g.dtype):
                x = x.view(-1, H, W, C).permute(0, 3, 1, 2) if channels_last else x.view(-1, C, H, W)
                x = _with_margins(x, mode, margins)
                yield _convolution_backward(g[at : at + len(x)], x, weight, options, 1)

        dw = _total(parts(), weight, flags)
    return dx, dw, db


def _convolution_backward(g: Tensor, x: Tensor, weight: Tensor, options, place: int) -> Tensor:
    """The gradient of x (0) or of the weight (1)."""
    if len(g) == 0:
        return torch.zeros_like(x if place == 0 else weight, memory_format=torch.contiguous_format)
    mask = [place == 0, place == 1, False]
    return torch.ops.aten.convolution_backward.default(g, x, weight, None, *options, mask)[place]


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
    vmap=_mapped("packed_conv2d_backward"),
    gradient=Gradient(_no_second_gradient),
)
packed_conv2d = operator(
    f"packed_conv2d(Tensor x, Tensor weight, Tensor? bias, {_OPTIONS}, bool packs) "
    "-> (Tensor y, Tensor bits, Tensor flags)",
    _conv2d,
    fake=_conv2d_fake,
    vmap=_mapped("packed_conv2d"),
    gradient=Gradient(_conv2d_gradient, inputs=(1,), outputs=(1, 2)),
)
