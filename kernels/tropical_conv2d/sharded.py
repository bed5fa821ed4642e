"""The tropical convolution of DTensors: shards of the images, or of the filters of one group, are ones of their own.

Where the images are not shared out, those of the filters are used; all other shards are gathered first. The gradient of
the filters is summed over the ranks that share out the images, and that of the images over those that share filters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime.sharded import from_local, mesh_of, sharded_dims, to_local


def convolution(conv2d: Callable[..., Any], x: Any, weight: Any, groups: int, return_indices: bool, **options: Any):
    """The convolution by `conv2d`, that of ordinary tensors: values, or (values, indices) as it returns them."""
    mesh = mesh_of("tropical_conv2d", x=x, weight=weight)
    images, filters = x.dim() - 4, x.dim() - 3  # dimensions of y; that of the images is not there in one image
    roles = []
    for of_x, of_weight in zip(sharded_dims(x), sharded_dims(weight), strict=True):
        is_of_images = x.dim() == 4 and of_x == images
        roles.append(images if is_of_images else filters if of_weight == 0 and groups == 1 else None)
    x_dims = [images if role == images else None for role in roles]
    weight_dims = [0 if role == filters else None for role in roles]
    y = conv2d(
        to_local(x, x_dims, [role == filters for role in roles]),
        to_local(weight, weight_dims, [role == images for role in roles]),
        groups=groups,
        return_indices=return_indices,
        **options,
    )
    here = y.values if return_indices else y
    shape = [*here.shape]
    for dim, size in ((images, x.shape[0]), (filters, weight.shape[0])):
        if dim >= 0:
            shape[dim] = size
    if not return_indices:
        return from_local(y, mesh, roles, shape)
    return type(y)(*(from_local(part, mesh, roles, shape) for part in y))
