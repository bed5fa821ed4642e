"""Hard thresholds in torch: the formulas of the C++ and Triton kernels, for devices that have neither."""

from __future__ import annotations

import torch
from torch import Tensor

from .definition import Form, activation, rule_of
from .layout import ordered, y_like, z_like

_BIT = tuple(1 << i for i in range(8))


def forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, form: Form, keep: bool) -> tuple[Tensor, ...]:
    """z, scale [C], shift [C] -> (y, m if it is kept, what is kept of the rule and of the maxima, in bytes)."""
    z = ordered(z, form)
    m, winners = _pooled(_affine(z, scale, shift), form.pool)
    y = y_like(z, form)
    y.copy_(activation(m, form.kind, form.steps))
    nothing = z.new_empty((0,))
    if not keep or form.kept == "z":
        return y, nothing, nothing.to(torch.uint8)
    kept = m.to(z.dtype) if form.kept == "m" else nothing
    parts = []
    if form.kept == "byte":
        rule = rule_of(form)
        parts.append((_factor(m, m, form) / rule.height * 255).round().to(torch.uint8))
    planes = _sides(m, form) if form.kept == "bits" else []
    if winners is not None:
        planes += [winners & 1 > 0, winners & 2 > 0]
    parts = [_flat(x, form) for x in parts] + [_packed(_flat(x, form)) for x in planes]
    code = torch.cat(parts) if parts else nothing.to(torch.uint8)
    return y, kept, code


def backward(
    dy: Tensor, z: Tensor | None, scale: Tensor | None, shift: Tensor | None, kept: Tensor, code: Tensor,
    coefficients: Tensor | None, form: Form,
) -> Tensor:  # fmt: skip
    """dy and what was kept -> dz.

    coefficients: rows p, q, center, r [4, C] of dz = p dx + q (z − center) + r, which only a call with z has. Without
    them dz = scale dx, or dx where there is no scale.
    """
    wide = torch.promote_types(dy.dtype, torch.float32)
    dx = _dx(dy, z, scale, shift, kept, code, form)
    if coefficients is None and scale is not None:
        dx = scale.view(-1, *(1,) * (dx.dim() - 2)) * dx
    elif coefficients is not None and z is not None:
        p, q, center, r = (row.view(-1, *(1,) * (dx.dim() - 2)) for row in coefficients)
        # where q is 0 z does not count, infinite as it may be
        dx = p * dx + torch.where(q == 0, 0, q * (z.to(wide) - center)) + r
    return z_like(dy, form).copy_(dx)


def sums(dy: Tensor, z: Tensor, scale: Tensor | None, shift: Tensor | None, center: Tensor, form: Form) -> Tensor:
    """dy, z -> rows Σ dx, Σ dx (z − center) [2, C], the sums over all but the channels."""
    dx = _dx(dy, z, scale, shift, z.new_empty((0,)), z.new_empty((0,), dtype=torch.uint8), form)
    others = [d for d in range(z.dim()) if d != 1]
    centered = z.to(dx.dtype) - center.view(-1, *(1,) * (z.dim() - 2))
    return torch.stack([dx.sum(others), (dx * centered).sum(others)])


def statistics(z: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """z -> mean and biased variance [C] over all but the channels, in float32 or wider."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, [d for d in range(z.dim()) if d != 1], correction=0)
    return mean, variance


# ------------------------------------------------------------------------------------------------ parts


def _affine(z: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """x in the dtype that is computed in, rounded to z's."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    if scale is None or shift is None:
        return wide
    of_channel = (-1, *(1,) * (z.dim() - 2))
    return (wide * scale.view(of_channel) + shift.view(of_channel)).to(z.dtype).to(wide.dtype)


def _pooled(x: Tensor, pool: bool) -> tuple[Tensor, Tensor | None]:
    """(m, which of the four is m). Of equal ones the first, of NaN the last, as torch's max_pool2d has it."""
    if not pool:
        return x, None
    four = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    m, winners = four[0], torch.zeros(four[0].shape, dtype=torch.uint8, device=x.device)
    for k, other in enumerate(four[1:], 1):
        wins = (other > m) | other.isnan()
        m, winners = torch.where(wins, other, m), winners.masked_fill(wins, k)
    return m, winners


def _sides(m: Tensor, form: Form) -> list[Tensor]:
    """The bits of each element that tell its factor, a tensor of bool each."""
    rule = rule_of(form)
    low = m > rule.low if rule.is_open else m >= rule.low
    high = m <= rule.high
    return {"all": [], "mask": [low & high], "sided": [low, high]}[rule.family]


def _factor(m: Tensor, dy: Tensor, form: Form) -> Tensor:
    rule = rule_of(form)
    if rule.family == "sech":
        e = (-2 * (rule.slope * m + rule.offset).abs()).exp()
        return rule.height * 4 * e / (1 + e) ** 2
    if rule.family == "ramp":
        return (2 - m.abs()).clamp(0, 1)
    return _of_sides(_sides(m, form), dy)


def _of_sides(sides: list[Tensor], dy: Tensor) -> Tensor:
    if not sides:
        return torch.ones_like(dy)
    if len(sides) == 1:
        return sides[0].to(dy.dtype)
    low, high = sides
    return torch.where(dy > 0, low, torch.where(dy < 0, high, dy.isnan())).to(dy.dtype)


def _dx(dy, z, scale, shift, kept, code, form: Form) -> Tensor:
    """The gradient to x, before any affine map, in the dtype that is computed in."""
    rule = rule_of(form)
    weight = dy.to(torch.promote_types(dy.dtype, torch.float32))
    if not form.weighted:
        weight = weight.sign()
    winners = None
    m: Tensor | None = None
    planes: list[Tensor] = []
    count = dy.numel()
    if form.kept == "z":
        m, winners = _pooled(_affine(z, scale, shift), form.pool)
    else:
        at = count if form.kept == "byte" else 0
        packed = code[at:].view(-1, -(-count // 8)) if count else code.view(0, 0)
        planes = [_unflat(_unpacked(plane, count), dy.shape, form) for plane in packed]
        if form.kept == "m":
            m = kept.to(weight.dtype)
        if form.pool and planes:
            column, row = planes[-2:]
            winners, planes = column.to(torch.uint8) + 2 * row.to(torch.uint8), planes[:-2]
    if form.kept == "byte":
        dm = weight * (_unflat(code[:count], dy.shape, form).to(weight.dtype) / 255 * rule.height)
    elif form.kept == "bits":
        dm = _kept_where(weight, _of_sides(planes, weight), rule)
    elif rule.family == "adaline":
        dm = weight + weight.abs() * m
    else:
        dm = _kept_where(weight, _factor(m, weight, form), rule)  # pyright: ignore[reportArgumentType]
    if not form.pool:
        return dm
    dx = dm.new_zeros(*dm.shape[:-2], 2 * dm.shape[-2], 2 * dm.shape[-1])
    if winners is not None:
        for k in range(4):
            dx[..., k // 2 :: 2, k % 2 :: 2] = torch.where(winners == k, dm, 0)
    return dx


def _kept_where(weight: Tensor, factor: Tensor, rule) -> Tensor:
    """weight · factor; a factor of 0 gives 0 also of infinities and NaN where the rule is a mask."""
    return torch.where(factor > 0, weight, 0.0) if rule.bits is not None else weight * factor


def _flat(x: Tensor, form: Form) -> Tensor:
    return (x.permute(0, 2, 3, 1) if form.channels_last else x).reshape(-1)


def _unflat(x: Tensor, shape: torch.Size, form: Form) -> Tensor:
    if not form.channels_last:
        return x.view(shape)
    N, C, H, W = shape
    return x.view(N, H, W, C).permute(0, 3, 1, 2)


def _packed(bits: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (padded * padded.new_tensor(_BIT)).sum(1).to(torch.uint8)


def _unpacked(plane: Tensor, count: int) -> Tensor:
    return ((plane[:, None] & plane.new_tensor(_BIT)) > 0).view(-1)[:count]
