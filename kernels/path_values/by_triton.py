"""The portable Triton kernels of path values: any GPU that Triton knows, and its interpreter on the CPU.

One lane walks one path, layer after layer. A table on the device describes the layers, so one launch, and one
compilation, serves all layers of any network. A path's nodes lie together: what the first column's load brings into
the cache serves the others.

The gradient's lanes walk forth, keeping prefix products, and back with the suffix product. The prefixes of a program's
paths lie in memory of its own, small enough for the second cache, as a register has no place for a number of layers
that is known when the kernel runs. Terms are added atomically, in any order; where torch asks for one order, they are
stored, and torch sorts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.network import Layer, problem_of, weights_of
from ..runtime import capture
from ..runtime.grid import cdiv

FIELDS = len(Layer._fields) + 1  # of a layer in the table: its sizes, and where its weights begin


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    return {"BLOCK": 128, "num_warps": 4}  # one path a lane: with more Triton exchanges them between lanes


FORWARD = Tuned(
    "path_values.triton",
    Space({"BLOCK": (128, 256, 512, 1024), "num_warps": (4, 8)}),
    default=_default,
    source=Path(__file__),
)
BACKWARD = Tuned(
    "path_values_backward.triton",
    Space({"BLOCK": (128, 256, 512), "PROGRAMS": (4, 8, 16, 32), "num_warps": (4, 8)}),  # PROGRAMS: a multiprocessor's
    default=lambda problem: {**_default(problem), "PROGRAMS": 16},
    source=Path(__file__),
)


@triton.jit
def _edge(layer_ptr, source, target, CONVOLUTIONS: tl.constexpr):
    """Where the weight of an edge lies, whether both nodes are in their layers, and whether the layer joins them."""
    C, H, W = tl.load(layer_ptr), tl.load(layer_ptr + 1), tl.load(layer_ptr + 2)
    O, P, Q = tl.load(layer_ptr + 3), tl.load(layer_ptr + 4), tl.load(layer_ptr + 5)
    inside = (source >= 0) & (source < C * H * W) & (target >= 0) & (target < O * P * Q)
    if CONVOLUTIONS:
        KH, KW = tl.load(layer_ptr + 6), tl.load(layer_ptr + 7)
        SH, SW = tl.load(layer_ptr + 8).to(tl.int32), tl.load(layer_ptr + 9).to(tl.int32)
        PH, PW = tl.load(layer_ptr + 10).to(tl.int32), tl.load(layer_ptr + 11).to(tl.int32)
        # 32 bits hold a node, and divide several times as fast
        s, t = tl.where(inside, source, 0).to(tl.int32), tl.where(inside, target, 0).to(tl.int32)
        area, width = (H * W).to(tl.int32), W.to(tl.int32)
        out_area, out_width = (P * Q).to(tl.int32), Q.to(tl.int32)
        i = s % area // width + PH - t % out_area // out_width * SH
        j = s % width + PW - t % out_width * SW
        joined = inside & (i >= 0) & (i < KH) & (j >= 0) & (j < KW)
        edge = (((t // out_area).to(tl.int64) * C + s // area) * KH + i) * KW + j
    else:
        joined = inside
        edge = target.to(tl.int64) * C + source
    return edge + tl.load(layer_ptr + 12), inside, joined


@triton.jit
def _path_values_fwd_kernel(
    flat_ptr,  # [B, n]
    paths_ptr,  # [B, P, L + 1]
    layers_ptr,  # [L, FIELDS] int64
    values_ptr,  # [B, P], contiguous
    P, L,
    stride_fb, stride_pb, stride_pp, stride_pl,
    FIELDS: tl.constexpr, CONVOLUTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(P, BLOCK)
    batch = (pid // pieces).to(tl.int64)
    offs = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < P
    flat_ptr += batch * stride_fb
    node_ptrs = paths_ptr + batch * stride_pb + offs * stride_pp
    source = tl.load(node_ptrs, mask=mask, other=0)
    value = tl.full([BLOCK], 1, flat_ptr.dtype.element_ty)
    for _ in range(L):
        node_ptrs += stride_pl
        target = tl.load(node_ptrs, mask=mask, other=0)
        edge, inside, joined = _edge(layers_ptr, source, target, CONVOLUTIONS)
        value *= tl.load(flat_ptr + edge, mask=mask & joined, other=0)
        value = tl.where(inside, value, float("nan"))
        source = target
        layers_ptr += FIELDS
    tl.store(values_ptr + batch * P + offs, value, mask=mask)


@triton.jit
def _path_values_bwd_kernel(
    dv_ptr,  # [B, P]
    flat_ptr,  # [B, n]
    paths_ptr,  # [B, P, L + 1]
    layers_ptr,  # [L, FIELDS] int64
    dflat_ptr,  # [B, n], contiguous, zero on entry, if ADD
    term_ptr,  # [programs, L, BLOCK]: prefixes, then, if not ADD, terms
    edge_ptr,  # [programs, L, BLOCK] int64, if not ADD: where in dflat a term belongs, −1 for nowhere
    blocks,  # B ⌈P / BLOCK⌉; as many programs if not ADD
    n, P, L,
    stride_vb, stride_vp, stride_fb, stride_pb, stride_pp, stride_pl,
    ADD: tl.constexpr, FIELDS: tl.constexpr, CONVOLUTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    pieces = tl.cdiv(P, BLOCK)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        batch = (block // pieces).to(tl.int64)
        offs = (block % pieces).to(tl.int64) * BLOCK + lanes
        mask = offs < P
        row_ptr = flat_ptr + batch * stride_fb
        node_ptrs = paths_ptr + batch * stride_pb + offs * stride_pp
        slot = tl.program_id(0).to(tl.int64) * L * BLOCK + lanes
        layer_ptr = layers_ptr
        source = tl.load(node_ptrs, mask=mask, other=0)
        prefix = tl.full([BLOCK], 1, flat_ptr.dtype.element_ty)
        whole = mask  # all its nodes are in their layers
        for l in range(L):
            node_ptrs += stride_pl
            target = tl.load(node_ptrs, mask=mask, other=0)
            edge, inside, joined = _edge(layer_ptr, source, target, CONVOLUTIONS)
            tl.store(term_ptr + slot + l * BLOCK, prefix)
            prefix *= tl.load(row_ptr + edge, mask=mask & joined, other=0)
            whole &= inside
            source = target
            layer_ptr += FIELDS
        tl.debug_barrier()  # a lane need not read what it wrote itself
        suffix = tl.load(dv_ptr + batch * stride_vb + offs * stride_vp, mask=whole, other=0)
        target = source
        for back in range(L):
            l = L - 1 - back
            node_ptrs -= stride_pl
            layer_ptr -= FIELDS
            source = tl.load(node_ptrs, mask=mask, other=0)
            edge, _, joined = _edge(layer_ptr, source, target, CONVOLUTIONS)
            joined &= whole
            term = tl.load(term_ptr + slot + l * BLOCK) * suffix
            suffix *= tl.load(row_ptr + edge, mask=joined, other=0)
            if ADD:
                tl.atomic_add(dflat_ptr + batch * n + edge, term, mask=joined, sem="relaxed")
            else:
                tl.store(term_ptr + slot + l * BLOCK, term)
                tl.store(edge_ptr + slot + l * BLOCK, tl.where(joined, batch * n + edge, -1))
            target = source
        tl.debug_barrier()  # the next paths' prefixes take the place of these


def _table(layers: tuple[Layer, ...], device: torch.device) -> Tensor:
    """Remembers `_new_table`, as a CUDA graph can hold no copy from the host."""
    return capture.kept(_new_table(layers, device), device)


@functools.lru_cache(1 << 10)
def _new_table(layers: tuple[Layer, ...], device: torch.device) -> Tensor:
    """[L, FIELDS] int64 on the device: each layer's sizes, and where its weights begin."""
    rows, first = [], 0
    for layer in layers:
        rows.append([*layer, first])
        first += weights_of(layer)
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int64, device=device)


@functools.lru_cache(1 << 10)
def _has_convolutions(layers: tuple[Layer, ...]) -> bool:
    return any(layer[1:3] + layer[4:8] != (1,) * 6 for layer in layers)


def forward(flat: Tensor, paths: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """flat [B, n] float32 or float64, paths [B, P, L + 1], any strides -> values [B, P]. No size is 0."""
    B, P, _ = paths.shape
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    values = flat.new_empty((B, P))
    config = FORWARD.config(problem_of(flat, paths, layers), flat.device)
    _path_values_fwd_kernel[(B * cdiv(P, config["BLOCK"]),)](
        flat, paths, _table(layers, flat.device), values, P, len(layers), flat.stride(0), *paths.stride(),
        FIELDS=FIELDS, CONVOLUTIONS=_has_convolutions(layers), **config,
    )  # fmt: skip
    return values


def backward(dv: Tensor, flat: Tensor, paths: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """dv [B, P] -> dflat [B, n]; the same bits every time where torch.are_deterministic_algorithms_enabled()."""
    (B, P, _), L, n = paths.shape, len(layers), flat.shape[1]
    add = not torch.are_deterministic_algorithms_enabled()
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    config = dict(BACKWARD.config(problem_of(flat, paths, layers), flat.device))
    most = config.pop("PROGRAMS") * _multiprocessors(flat.device)
    blocks = B * cdiv(P, config["BLOCK"])
    programs = min(blocks, most) if add else blocks
    dflat = torch.zeros((B, n), dtype=flat.dtype, device=flat.device)
    terms = torch.empty((programs, L, config["BLOCK"]), dtype=flat.dtype, device=flat.device)
    places = torch.empty((0,) if add else terms.shape, dtype=torch.int64, device=flat.device)
    _path_values_bwd_kernel[(programs,)](
        dv, flat, paths, _table(layers, flat.device), dflat, terms, places, blocks, n, P, L,
        *dv.stride(), flat.stride(0), *paths.stride(),
        ADD=add, FIELDS=FIELDS, CONVOLUTIONS=_has_convolutions(layers), **config,
    )  # fmt: skip
    if add:
        return dflat
    # one more place than there are weights takes the terms that belong nowhere
    sums = torch.zeros(B * n + 1, dtype=flat.dtype, device=flat.device)
    nowhere = places.flatten()
    sums.scatter_add_(0, torch.where(nowhere < 0, B * n, nowhere), terms.flatten())
    return sums[:-1].view(B, n)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
