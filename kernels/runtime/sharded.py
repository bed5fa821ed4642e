"""Tensors that processes share out: DTensor's shards go in as ordinary tensors, and come out with their gradients.

An op takes what lies here of each argument, in the placements that it asks for, and says how its result is placed. A
gradient comes back in the placements of its argument; what several ranks contributed to is summed on the way.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement


def is_sharded(*tensors: Any) -> bool:
    """Whether one of them is a DTensor. No process has one that has not imported the module, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in tensors)


def mesh_of(op: str, **tensors: Tensor) -> DeviceMesh:
    """The mesh that all of them are shared out on.

    Raises:
        TypeError: one of them is no DTensor.  ValueError: their meshes differ.
    """
    from torch.distributed.tensor import DTensor

    for name, x in tensors.items():
        if not isinstance(x, DTensor):
            raise TypeError(
                f"{op}: {name} is a {type(x).__name__} beside a DTensor; expected DTensors: "
                f"distribute_tensor({name}, mesh, [Replicate()]) where every rank holds all of it"
            )
    (_, first), *others = tensors.items()
    for name, x in others:
        if x.device_mesh != first.device_mesh:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"{op}: {name} lies on {x.device_mesh}; expected {first.device_mesh}, as the others")  # pyright: ignore
    return first.device_mesh  # pyright: ignore[reportAttributeAccessIssue]


def sharded_dims(x: DTensor) -> list[int | None]:
    """For each dimension of the mesh the dimension of x that it shares out, or None."""
    return [placement.dim if placement.is_shard() else None for placement in x.placements]  # pyright: ignore


def to_local(x: DTensor, dims: Sequence[int | None], is_summed: Sequence[bool]) -> Tensor:
    """The part of x, shared out along `dims`, that lies here; its gradient is summed where `is_summed`."""
    from torch.distributed.tensor import Partial

    placements = [Partial() if summed else place for place, summed in zip(_placements(dims), is_summed, strict=True)]
    # a redistribution also brings the gradient back to where x lies, even one that moves nothing
    return x.redistribute(placements=_placements(dims)).to_local(grad_placements=placements)


def from_local(x: Tensor, mesh: DeviceMesh, dims: Sequence[int | None], shape: Sequence[int]) -> DTensor:
    """The tensor of this shape, shared out along `dims`, of which x lies here: shards may be of uneven sizes."""
    from torch.distributed.tensor import DTensor

    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    placements = _placements(dims)
    return DTensor.from_local(x, mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides)


def span(size: int, mesh: DeviceMesh, dims: Sequence[int | None], dim: int) -> tuple[int, int]:
    """Begin and end of what lies here of a dimension of `size`: chunks as of torch.chunk, in chunks on further dims."""
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a rank outside of the mesh"
    begin, end = 0, size
    for at, shared in enumerate(dims):
        if shared == dim:
            chunk = -(-(end - begin) // mesh.size(at))
            begin, end = min(end, begin + chunk * coordinate[at]), min(end, begin + chunk * (coordinate[at] + 1))
    return begin, end


def _placements(dims: Sequence[int | None]) -> list[Placement]:
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if dim is None else Shard(dim) for dim in dims]
