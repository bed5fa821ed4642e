"""The C++ kernel of path values (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
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


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "paths", "layers", "block")),
        *((name, ctypes.c_int64) for name in ("flat_batch", "path_batch", "path_row", "path_column")),
        *((name, ctypes.c_int64) for name in ("dv_batch", "dv_column", "node_bytes", "threads")),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("path_values", SOURCE, dtype)
    call, layers, pointer = ctypes.POINTER(_Call), ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p
    library.path_values_forward.argtypes = [call, layers, pointer, pointer, pointer]
    library.path_values_backward.argtypes = [call, layers, pointer, pointer, pointer, pointer]
    return library.path_values_forward, library.path_values_backward


def _call(flat: Tensor, paths: Tensor, layers: tuple[Layer, ...], config: Config) -> _Call:
    B, P, _ = paths.shape
    path_batch, path_row, path_column = paths.stride()
    return _Call(
        batch=B,
        paths=P,
        layers=len(layers),
        block=config["BLOCK"],
        flat_batch=flat.stride(0),
        path_batch=path_batch,
        path_row=path_row,
        path_column=path_column,
        node_bytes=paths.element_size(),
        threads=native.threads(config["threads"], paths.numel(), _SMALL),
    )


def forward(flat: Tensor, paths: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """flat [B, n] float32 or float64, paths [B, P, L + 1], any strides -> values [B, P]. No size is 0.

    Raises:
        IndexError: a node outside its layer.
    """
    B, P, _ = paths.shape
    flat = _in_rows(flat)
    values = flat.new_empty((B, P))
    config = FORWARD.config(problem_of(flat, paths, layers), flat.device)
    call, fields = _call(flat, paths, layers, config), native.integers(*pack(layers))
    status = _functions(flat.dtype)[0](call, fields, flat.data_ptr(), paths.data_ptr(), values.data_ptr())
    _check(status, paths, layers)
    return values


def backward(dv: Tensor, flat: Tensor, paths: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """dv [B, P] -> dflat [B, n], added up in the order of the paths on any number of threads. No size is 0.

    Raises:
        IndexError: a node outside its layer.
    """
    flat = _in_rows(flat)
    dflat = flat.new_zeros(flat.shape)
    config = BACKWARD.config(problem_of(flat, paths, layers), flat.device)
    call, fields = _call(flat, paths, layers, config), native.integers(*pack(layers))
    call.dv_batch, call.dv_column = dv.stride()
    addresses = dv.data_ptr(), flat.data_ptr(), paths.data_ptr(), dflat.data_ptr()
    status = _functions(flat.dtype)[1](call, fields, *addresses)
    _check(status, paths, layers)
    return dflat


def _in_rows(flat: Tensor) -> Tensor:
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _check(status: int, paths: Tensor, layers: tuple[Layer, ...]) -> None:
    if status == 1:
        raise MemoryError("path_values: no memory for the edges of one block of paths a thread")
    if status == 2:
        check_nodes(paths, layers)
