"""Data sets of the studies: scikit-learn's bundled digits and iris; MNIST-format (IDX) and CIFAR-10 files in a folder.

Features are float32 in [0, 1], labels int64. What cannot be read is a DataError: one line that names the file, what
came and what was expected.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BUNDLED = ("digits", "iris")


class DataError(ValueError):
    """Missing or corrupt data, in one line."""


@dataclass(frozen=True)
class Dataset:
    """x [N, d] float32 in [0, 1] and y [N] int64 in [0, classes), split once into a training and a test part."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str

    @property
    def features(self) -> int:
        return self.x_train.shape[1]

    @property
    def classes(self) -> int:
        return int(self.y_train.max()) + 1

    def subset(self, train_per_class: int, test_per_class: int, seed: int = 0) -> Dataset:
        """At most so many samples of each class, drawn by seed, in their first order."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(y: Tensor, per_class: int) -> Tensor:
            of_class = [(y == label).nonzero().squeeze(1) for label in range(self.classes)]
            kept = [rows[torch.randperm(len(rows), generator=generator, device="cpu")[:per_class]] for rows in of_class]
            return torch.cat(kept).sort().values

        train, test = drawn(self.y_train, train_per_class), drawn(self.y_test, test_per_class)
        name = f"{self.name}, {train_per_class} + {test_per_class} a class"
        return Dataset(self.x_train[train], self.y_train[train], self.x_test[test], self.y_test[test], name)


def find_data_dir(option: Path | None = None) -> Path | None:
    """The folder of real data: the option, else the environment's TROPIGRAD_DATA, else None."""
    if option is not None:
        return option
    named = os.environ.get("TROPIGRAD_DATA")
    return Path(named) if named else None


def load(spec: str | None = None, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """A data set by name.

    Args:
        spec: "digits", "iris", "mnist" (of data_dir) or "mnist:DIR"; by default mnist where data_dir is given, else
            digits; "cifar10" likewise. MNIST-format files are sought in the folder and in its subfolder mnist, gzipped
            or not; CIFAR-10's binary files in the folder and in its subfolder cifar10, xz or not.
        seed: of the stratified split of digits (1257 for training, 540 for the test) and iris (105 and 45).

    Raises:
        DataError: an unknown name; a folder or file that is missing or not what it should be.
    """
    if spec is None:
        spec = "digits" if data_dir is None else "mnist"
    name, _, folder = spec.partition(":")
    if spec in BUNDLED:
        return _bundled(spec, seed)
    if name not in ("mnist", "cifar10"):
        raise DataError(f"data set {spec!r} is unknown; expected {', '.join(BUNDLED)}, mnist:DIR or cifar10:DIR")
    read = read_mnist if name == "mnist" else read_cifar10
    if folder:
        return read(Path(folder))
    if data_dir is None:
        raise DataError(f"{name} needs a folder: {name}:DIR, --data-dir DIR or TROPIGRAD_DATA")
    return read(data_dir)


def load_few(data_dir: Path | None, train_per_class: int, test_per_class: int, seed: int) -> Dataset:
    """The digits, whole; or of the MNIST-format files of a folder so many samples of each class.

    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    dataset = load(data_dir=data_dir, seed=seed)
    return dataset if data_dir is None else dataset.subset(train_per_class, test_per_class, seed)


def _bundled(name: str, seed: int) -> Dataset:
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise DataError(f"{name} comes with scikit-learn: pip install 'tropigrad[studies]'") from None
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = map(np.asarray, parts)
    low, high = x_train.min(), x_train.max()
    if name == "iris":  # its four features have four ranges; pixels share one
        low, high = x_train.min(axis=0), x_train.max(axis=0)

    def features(part: np.ndarray) -> Tensor:
        return torch.from_numpy(((part - low) / (high - low)).clip(0, 1)).float()

    def labels(part: np.ndarray) -> Tensor:
        return torch.from_numpy(part).long()

    return Dataset(features(x_train), labels(y_train), features(x_test), labels(y_test), name)


# ------------------------------------------------------------------------------------------------ MNIST format

_UBYTE = 0x08  # the IDX type code of unsigned bytes


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: zero, zero, type, rank; the sizes, big-endian; then the bytes.

    Raises:
        DataError: it cannot be read, or is not an IDX file of `dimensions` dimensions and the length it announces.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); expected an IDX file, gzipped or not") from None
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{path}: {len(raw)} bytes; expected an IDX header of {header}")
    magic = int.from_bytes(raw[:4], "big")
    expected = _UBYTE << 8 | dimensions
    if magic != expected:
        raise DataError(
            f"{path}: magic number 0x{magic:08x}; expected 0x{expected:08x}, bytes in {dimensions} dimension(s)"
        )
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).tolist()
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path}: {len(raw) - header} bytes of data; expected {math.prod(shape)} for {' × '.join(map(str, shape))}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, stem: str) -> Path:
    for place in (folder, folder / "mnist"):
        for name in (f"{stem}.gz", stem):
            if (place / name).is_file():
                return place / name
    raise DataError(f"{folder}: no {stem}.gz or {stem} there or in its subfolder mnist; expected MNIST-format files")


def read_mnist(folder: Path) -> Dataset:
    """The four files of MNIST, or of a set in its format: images of one size, labels 0 to 9, pixels divided by 255.

    Raises:
        DataError: the folder or a file is missing, is corrupt, or does not fit the others.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with MNIST-format files")
    paths = {
        (part, kind): _find(folder, f"{part}-{kind}-idx{dimensions}-ubyte")
        for part in ("train", "t10k")
        for kind, dimensions in (("images", 3), ("labels", 1))
    }
    tensors: list[Tensor] = []
    sizes: tuple[int, ...] | None = None
    for part in ("train", "t10k"):
        images_path, labels_path = paths[part, "images"], paths[part, "labels"]
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        sizes = sizes or images.shape[1:]
        if images.size == 0:
            raise DataError(f"{images_path}: shape {images.shape}; expected at least one image of at least one pixel")
        if images.shape[1:] != sizes:
            raise DataError(f"{images_path}: images of {images.shape[1:]}; expected {sizes}, as for training")
        if len(labels) != len(images):
            raise DataError(f"{labels_path}: {len(labels)} labels; expected {len(images)}, one for each image")
        if labels.max() > 9:
            raise DataError(f"{labels_path}: label {labels.max()}; expected 0 to 9")
        pixels = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
        tensors += [torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))]
    return Dataset(*tensors, name="mnist")


# ------------------------------------------------------------------------------------------------ CIFAR-10

_CIFAR_BYTES = 1 + 3 * 32 * 32  # a label, then the planes of red, green and blue


def read_cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from its binary files: all data_batch_*.bin and test_batch*.bin there are, xz-compressed or not.

    Features [3 · 32 · 32] are the three planes, divided by 255.

    Raises:
        DataError: the folder, the training files or the test files are missing, or one is corrupt.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with CIFAR-10's binary files")
    tensors: list[Tensor] = []
    for stem in ("data_batch", "test_batch"):
        paths = [path for place in (folder, folder / "cifar10") for path in sorted(place.glob(f"{stem}*.bin*"))]
        if not paths:
            raise DataError(f"{folder}: no {stem}*.bin or .bin.xz there or in its subfolder cifar10; expected CIFAR-10")
        records = np.concatenate([_cifar_records(path) for path in paths])
        tensors.append(torch.from_numpy(records[:, 1:].astype(np.float32) / np.float32(255)))
        tensors.append(torch.from_numpy(records[:, 0].astype(np.int64)))
    return Dataset(*tensors, name="cifar10")


def _cifar_records(path: Path) -> np.ndarray:
    try:
        raw = path.read_bytes()
        raw = lzma.decompress(raw) if path.suffix == ".xz" else raw
    except (OSError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); expected CIFAR-10's binary records") from None
    if not raw or len(raw) % _CIFAR_BYTES:
        raise DataError(f"{path}: {len(raw)} bytes; expected records of {_CIFAR_BYTES}, a label and 3 × 32 × 32 pixels")
    records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR_BYTES)
    if records[:, 0].max() > 9:
        raise DataError(f"{path}: label {records[:, 0].max()}; expected 0 to 9")
    return records
