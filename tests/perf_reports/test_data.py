"""Data sets: the fixed splits, the IDX reader, and one line for everything that can be wrong with a file."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.data import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array, code=0x08):
    return bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


# ------------------------------------------------------------------------------------------------ bundled


@pytest.mark.parametrize(
    ("name", "train", "test", "features", "classes"), [("digits", 1257, 540, 64, 10), ("iris", 105, 45, 4, 3)]
)
def test_bundled_sets_are_split_once_and_scaled(name, train, test, features, classes):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    found, again, other = data.load(name), data.load(name), data.load(name, seed=1)
    assert (len(found.x_train), len(found.x_test)) == (train, test)
    assert (len(found.y_train), len(found.y_test)) == (train, test)
    assert (found.features, found.classes, found.name) == (features, classes, name)
    assert found.x_train.dtype == torch.float32
    assert found.y_train.dtype == torch.int64
    for part in (found.x_train, found.x_test):
        assert part.min() >= 0
        assert part.max() <= 1
    assert torch.equal(found.x_train, again.x_train)
    assert not torch.equal(found.x_train, other.x_train)


def test_digits_keep_their_grey_levels():
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    levels = data.load("digits").x_train.mul(16)
    assert torch.equal(levels, levels.round())


def test_classes_have_equal_shares_in_both_parts():
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    found = data.load("iris")
    assert torch.bincount(found.y_train).tolist() == [35, 35, 35]
    assert torch.bincount(found.y_test).tolist() == [15, 15, 15]


def test_a_subset_is_seeded_and_balanced(write_mnist, tmp_path):
    whole = data.load("mnist", write_mnist(tmp_path))
    part, again, other = whole.subset(2, 1), whole.subset(2, 1), whole.subset(2, 1, seed=1)
    assert torch.bincount(part.y_train).tolist() == [2] * 10
    assert torch.bincount(part.y_test).tolist() == [1] * 10
    assert torch.equal(part.x_train, again.x_train)
    assert not torch.equal(part.x_train, other.x_train)
    assert part.name == "mnist, 2 + 1 a class"


# ------------------------------------------------------------------------------------------------ MNIST format


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
@pytest.mark.parametrize("below", [".", "mnist"], ids=["in the folder", "in its mnist"])
def test_mnist_files_are_found_and_read(write_mnist, tmp_path, below, packed):
    write_mnist(tmp_path / below, packed=packed)
    expected = np.random.default_rng(0).integers(0, 256, (30, 4, 3)).reshape(30, 12)
    for found in (data.load("mnist", tmp_path), data.load(f"mnist:{tmp_path}"), data.load(data_dir=tmp_path)):
        assert found.x_train.shape == (30, 12)
        assert found.x_test.shape == (10, 12)
        assert torch.equal(found.x_train.mul(255).round().long(), torch.from_numpy(expected))
        assert found.y_train.tolist() == [n % 10 for n in range(30)]


def test_real_mnist():
    folder = data.find_data_dir()
    if folder is None:
        pytest.skip("TROPIGRAD_DATA names no folder of real data")
    found = data.load("mnist", folder)
    assert found.x_train.shape[1] == 784
    assert len(found.x_train) == len(found.y_train) > 1000
    assert found.classes == 10


GOOD_IMAGES, GOOD_LABELS = np.zeros((30, 4, 3)), np.arange(30) % 10
BREAKAGES = [
    pytest.param(IMAGES, b"", "0 bytes; expected an IDX header of 16", id="empty"),
    pytest.param(IMAGES, idx(GOOD_IMAGES)[:9], "9 bytes; expected an IDX header of 16", id="half a header"),
    pytest.param(IMAGES, b"\x89PNG" + bytes(40), "magic number 0x89504e47; expected 0x00000803", id="a picture"),
    pytest.param(IMAGES, idx(GOOD_LABELS) + bytes(9), "0x00000801; expected 0x00000803", id="labels for images"),
    pytest.param(LABELS, idx(GOOD_IMAGES), "0x00000803; expected 0x00000801", id="images for labels"),
    pytest.param(IMAGES, idx(GOOD_IMAGES, code=0x0D), "0x00000d03; expected 0x00000803", id="floats"),
    pytest.param(IMAGES, idx(GOOD_IMAGES)[:-1], r"359 bytes of data; expected 360 for 30 × 4 × 3", id="truncated"),
    pytest.param(IMAGES, idx(GOOD_IMAGES) + b"x", "361 bytes of data; expected 360", id="too long"),
    pytest.param(IMAGES, idx(np.zeros((0, 4, 3))), "at least one image", id="no image"),
    pytest.param(IMAGES, gzip.compress(idx(GOOD_IMAGES))[:20], "cannot be read", id="truncated gzip"),
    pytest.param(IMAGES, b"\x1f\x8b" + bytes(40), "cannot be read", id="not gzip after all"),
    pytest.param(LABELS, idx(GOOD_LABELS[:29]), "29 labels; expected 30, one for each image", id="fewer labels"),
    pytest.param(LABELS, idx(GOOD_LABELS + 1), "label 10; expected 0 to 9", id="label 10"),
    pytest.param(
        "t10k-images-idx3-ubyte", idx(np.zeros((10, 5, 5))), r"expected \(4, 3\), as for training", id="sizes"
    ),
]


@pytest.mark.parametrize(("name", "content", "match"), BREAKAGES)
def test_a_broken_file_is_named_in_one_line(write_mnist, tmp_path, name, content, match):
    write_mnist(tmp_path, packed=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        data.load("mnist", tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(write_mnist, tmp_path):
    write_mnist(tmp_path, packed=False)
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match=f"no {LABELS}.gz or {LABELS} there or in its subfolder mnist"):
        data.load("mnist", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_is_named(write_mnist, tmp_path):
    write_mnist(tmp_path, packed=False)
    (tmp_path / IMAGES).chmod(0)
    with pytest.raises(DataError, match=f"{IMAGES}: cannot be read"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("spec", "data_dir", "match"),
    [
        pytest.param("mnist:/no/such/folder", None, "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(None, Path("/no/such/folder"), "/no/such/folder: no such folder", id="missing data_dir"),
        pytest.param("mnist", None, "mnist needs a folder", id="no folder"),
        pytest.param(
            "letters",
            None,
            "data set 'letters' is unknown; expected digits, iris, mnist:DIR or cifar10:DIR",
            id="unknown",
        ),
        pytest.param("digits:here", None, "'digits:here' is unknown", id="digits in a folder"),
    ],
)
def test_bad_requests_are_named(spec, data_dir, match):
    with pytest.raises(DataError, match=match):
        data.load(spec, data_dir)


def test_the_folder_comes_from_the_option_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_DATA", "elsewhere")
    assert data.find_data_dir(tmp_path) == tmp_path
    assert data.find_data_dir() == Path("elsewhere")
    monkeypatch.setenv("TROPIGRAD_DATA", "")
    assert data.find_data_dir() is None
    monkeypatch.delenv("TROPIGRAD_DATA")
    assert data.find_data_dir() is None


# ------------------------------------------------------------------------------------------------ CIFAR-10


def cifar(folder, count=4, label=3):
    records = torch.randint(0, 256, (count, 3073), dtype=torch.uint8)
    records[:, 0] = label
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (folder / name).write_bytes(records.numpy().tobytes())
    return records


def test_cifar10_is_read(tmp_path):
    records = cifar(tmp_path)
    found = data.load(f"cifar10:{tmp_path}")
    assert (found.name, found.x_train.shape, found.x_test.shape) == ("cifar10", (8, 3072), (4, 3072))
    assert torch.equal(found.x_test, records[:, 1:].float() / 255)
    assert found.y_train.tolist() == [3] * 8


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda path: path.unlink(), "no test_batch", id="missing"),
        pytest.param(lambda path: path.write_bytes(b"x" * 100), "100 bytes; expected records of 3073", id="short"),
        pytest.param(lambda path: path.write_bytes(b"\x0b" * 3073), "label 11; expected 0 to 9", id="label"),
        pytest.param(lambda path: path.rename(f"{path}.xz"), "cannot be read", id="not-xz"),
    ],
)
def test_corrupt_cifar10_is_named(tmp_path, spoil, match):
    cifar(tmp_path)
    spoil(tmp_path / "test_batch.bin")
    with pytest.raises(data.DataError, match=match):
        data.load("cifar10", tmp_path)
