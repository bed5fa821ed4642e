"""The C++ kernel of path values (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ..mathematics.network import Layer, pack, problem_of
from ..runtime import native
from .definition import check_nodes

SOURCE = Path(__file__).with_name("by_cpp.cpp")


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    """Short blocks stay in the first cache; where the weights do not stay in the second one, long blocks let one
    layer's.
    """
    itemsize = 8 if problem["dtype"] == "torch.float64" else 4
    return {"BLOCK": 1 << 10 if 2 * int(problem["weights"]) * itemsize <= 1 << 21 else 1 << 14, "threads": 0}


# BLOCK: paths of a block. Every choice adds a weight's terms in the order of the paths: the same bits.
_SPACE = Space({"BLOCK": (1 << 10, 1 << 12, 1 << 14, 1 << 16), "threads": native.THREADS})
FORWARD = Tuned("path_values.cpp", _SPACE, _default, SOURCE)
BACKWARD = Tuned("path_values_backward.cpp", _SPACE, _default, SOURCE)
_SMALL = 1 << 15  # edges: less is done before a thread would start


@native.cached
def _functions(dtype: torch.dtype):
    found = native.required("path_values", SOURCE, dtype)
    pointer, integer, integers = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)
    found.path_values_forward.argtypes = [integers, integers, integers, integer, pointer, pointer, pointer, integer]
    found.path_values_backward.argtypes = [
        integers, integers, integers, integer, pointer, pointer, pointer, pointer, integer,
    ]  # fmt: skip
    return found.path_values_forward, found.path_values_backward


def forward(flat: Tensor, paths: Tensor, layers: Sequence[Layer]) -> Tensor:
    """flat [B, n] float32 or float64, paths [B, P, L + 1], any strides -> values [B, P]. No size is 0.

    Raises:
        IndexError: a node outside its layer.
    """
    B, P, _ = paths.shape
    flat = _in_rows(flat)
    values = flat.new_empty((B, P))
    config = FORWARD.config(problem_of(flat, paths, layers), flat.device)
    status = _functions(flat.dtype)[0](
        native.integers(B, P, len(layers), config["BLOCK"]),
        native.integers(*pack(layers)),
        native.integers(flat.stride(0), *paths.stride(), 0, 0),
        paths.element_size(),
        flat.data_ptr(),
        paths.data_ptr(),
        values.data_ptr(),
        native.threads(config["threads"], paths.numel(), _SMALL),
    )
    _check(status, paths, layers)
    return values


def backward(dv: Tensor, flat: Tensor, paths: Tensor, layers: Sequence[Layer]) -> Tensor:
    """dv [B, P] -> dflat [B, n], added up in the order of the paths on any number of threads. No size is 0.

    Raises:
        IndexError: a node outside its layer.
    """
    B, P, _ = paths.shape
    flat = _in_rows(flat)
    dflat = flat.new_zeros(flat.shape)
    config = BACKWARD.config(problem_of(flat, paths, layers), flat.device)
    status = _functions(flat.dtype)[1](
        native.integers(B, P, len(layers), config["BLOCK"]),
        native.integers(*pack(layers)),
        native.integers(flat.stride(0), *paths.stride(), *dv.stride()),
        paths.element_size(),
        dv.data_ptr(),
        flat.data_ptr(),
        paths.data_ptr(),
        dflat.data_ptr(),
        native.threads(config["threads"], paths.numel(), _SMALL),
    )
    _check(status, paths, layers)
    return dflat


def _in_rows(flat: Tensor) -> Tensor:
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _check(status: int, paths: Tensor, layers: Sequence[Layer]) -> None:
    if status == 1:
        raise MemoryError("path_values: no memory for the edges of one block of paths a thread")
    if status == 2:
        check_nodes(paths, layers)
