"""Texts as integers: arrays, memory maps, tensors and files of tokens, read in chunks.

A text larger than memory is never read as a whole: a chunk overlaps the one before by `radius` tokens, so that every
position is seen once, with its whole context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TokensLike = np.ndarray | Tensor | str | os.PathLike

CHUNK = 1 << 20  # positions: some 50 MB for contexts, targets and counts of a chunk


def open_tokens(owner: str, tokens: Any, dtype: Any = "uint16") -> np.ndarray | Tensor:
    """A 1-D text of integers: an array, a tensor or a memory map as it is; a path as a memory map.

    Args:
        owner: who asks, for messages.
        tokens: a 1-D integer ndarray or tensor, or the path of a `.npy` file or of raw little-endian integers.
        dtype: of the raw file's integers; nanoGPT's .bin files hold uint16.

    Raises:
        TypeError: neither an array of integers nor a path.
        ValueError: a file that is missing, empty or no whole number of tokens; more or fewer dimensions than one.
    """
    if isinstance(tokens, str | os.PathLike):
        tokens = _map_file(owner, Path(tokens), dtype)
    if not isinstance(tokens, Tensor | np.ndarray):
        raise TypeError(
            f"{owner}: tokens is a {type(tokens).__name__}; expected a 1-D ndarray or tensor of integers, or a path"
        )
    check_integers(owner, "tokens", tokens)
    if tokens.ndim != 1:
        raise ValueError(f"{owner}: tokens has shape {tuple(tokens.shape)}; expected one dimension")
    return tokens


def check_integers(owner: str, name: str, x: np.ndarray | Tensor) -> None:
    """
    Raises:
        TypeError: x is of floats, complex numbers, bools or objects.
    """
    if isinstance(x, Tensor):
        is_whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    else:
        is_whole = x.dtype.kind in "iu"
    if not is_whole:
        raise TypeError(f"{owner}: {name} has dtype {x.dtype}; expected integers")


def as_int64(x: np.ndarray | Tensor) -> Tensor:
    """Integers of any dtype, strides and byte order as int64."""
    return x.long() if isinstance(x, Tensor) else torch.from_numpy(x.astype(np.int64))


def _map_file(owner: str, path: Path, dtype: Any) -> np.ndarray:
    try:
        kind = np.dtype(dtype).newbyteorder("<")
    except TypeError:
        raise TypeError(f"{owner}: dtype is {dtype!r}; expected an integer dtype such as 'uint16'") from None
    if kind.kind not in "iu":
        raise TypeError(f"{owner}: dtype is {dtype!r}; expected an integer dtype such as 'uint16'")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ValueError(f"{owner}: {path} is empty; expected tokens")
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if size % kind.itemsize:
            raise ValueError(
                f"{owner}: {path} has {size} bytes, no whole number of {kind.name} tokens; name their dtype="
            )
        return np.memmap(path, kind, mode="r")
    except OSError as error:
        raise ValueError(f"{owner}: {path}: {error.strerror or error}; expected a file of tokens") from None


def windows(
    owner: str, tokens: np.ndarray | Tensor, vocabulary: int, radius: int, boundary: int | None, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Contexts [n, radius] int64, oldest token first, and the tokens [n] int64 that follow them, `chunk` at a time.

    A context never reaches back over a boundary; the boundary itself may be its oldest token.

    Raises:
        ValueError: a token outside [0, vocabulary), named with its position; a text without one whole context.
    """
    if len(tokens) <= radius:
        raise ValueError(f"{owner}: tokens has length {len(tokens)}; expected more than the radius, {radius}")
    for start in range(radius, len(tokens), chunk):
        first = start - radius
        piece = as_int64(tokens[first : start + chunk])
        is_outside = (piece < 0) | (piece >= vocabulary)
        if is_outside.any():
            position = int(is_outside.nonzero()[0])
            raise ValueError(
                f"{owner}: token {int(piece[position])} at position {first + position}; "
                f"expected 0 to {vocabulary - 1} (vocabulary {vocabulary})"
            )
        contexts, targets = piece[:-1].unfold(0, radius, 1), piece[radius:]
        if boundary is not None:
            is_whole = (contexts[:, 1:] != boundary).all(1)
            contexts, targets = contexts[is_whole], targets[is_whole]
        yield contexts, targets
