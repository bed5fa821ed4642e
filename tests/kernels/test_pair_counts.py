"""Counts of pairs against collections.Counter and the definition; streams in any chunks, also larger than memory."""

import math
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.autotune import override
from tropigrad.kernels import pair_counts as package
from tropigrad.kernels.pair_counts import Counts, PairCounter, by_cpp, merge_counts, pair_counts
from tropigrad.kernels.pair_counts.definition import DTYPES, pair_counts_ref
from tropigrad.kernels.runtime import backend

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why := backend.why_off(name, CPU)), reason=why))
    for name in ("cpp", "torch")
]
needs_cpp = pytest.mark.skipif(bool(backend.why_off("cpp", CPU)), reason=backend.why_off("cpp", CPU))


def same(got: Counts, expected: Counts) -> None:
    for name, x, y in zip(Counts._fields, got, expected, strict=True):
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name


def zipf(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Numbers below size, of which the small ones come far more often, as words do."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (size**uniform - 1).long().clamp(max=size - 1)


def as_dict(counts: Counts) -> dict[tuple[int, int], int]:
    crow, columns, numbers = (x.tolist() for x in counts)
    return {(r, columns[i]): numbers[i] for r in range(len(crow) - 1) for i in range(crow[r], crow[r + 1])}


# ------------------------------------------------------------------------------------------------ one call


@pytest.mark.parametrize("name", BACKENDS)
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=80))
@settings(max_examples=60, deadline=None)
def test_it_counts_as_a_dictionary_does(name, pairs):
    rows, columns = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    with backend.forcing(name):
        counts = pair_counts(rows, columns, (7, 5))
    assert as_dict(counts) == Counter(pairs)
    assert list(as_dict(counts)) == sorted(set(pairs))
    assert int(counts.crow[-1]) == len(counts.columns) == len(counts.counts)


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_and_columns_have_dtypes_of_their_own(name, set_backend):
    set_backend(name)
    rows, columns = zipf(5000, 100), zipf(5000, 120, seed=1)
    expected = pair_counts_ref(rows, columns, (100, 120))
    for of_rows in DTYPES:
        for of_columns in DTYPES:
            same(pair_counts(rows.to(of_rows), columns.to(of_columns), (100, 120)), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_operands_may_be_views_of_one_text(name, set_backend):
    """Shifted by a few places, every third, or one number for all."""
    set_backend(name)
    text = zipf(9000, 300).to(torch.uint16)
    for rows, columns in ((text[:-4], text[4:]), (text[::3], text[1::3]), (text[5].expand(9000), text)):
        same(pair_counts(rows, columns, (300, 300)), pair_counts_ref(rows, columns, (300, 300)))


@needs_cpp
@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        pytest.param(torch.full((1_000_000,), 7), zipf(1_000_000, 40_000), (50_000, 40_000), id="one-row"),
        pytest.param(zipf(1_000_000, 40_000), torch.full((1_000_000,), 7), (40_000, 50_000), id="one-column"),
        pytest.param(torch.full((70_000,), 3), torch.full((70_000,), 9), (10**6, 2**31), id="one-pair"),
        pytest.param(zipf(300_000, 2**31), zipf(300_000, 2**31, seed=1), (1, 2**31), id="row-of-2^31"),
        pytest.param(zipf(300_000, 10**7), zipf(300_000, 30_000, seed=1), (10**7, 30_000), id="10^7-rows"),
        pytest.param(zipf(300_000, 10**6), zipf(300_000, 2**40, seed=1), (10**6, 2**41), id="8-byte-keys"),
        pytest.param(zipf(300_000, 2**20), zipf(300_000, 2**13, seed=1), (2**20, 2**13), id="all-bits"),
    ],
)
def test_skewed_and_large_shapes_equal_the_definition(rows, columns, shape):
    if shape[0] == 1:
        rows = rows * 0
    expected = pair_counts_ref(rows, columns, shape)
    for threads in (1, 2, 4):
        with override("pair_counts.cpp", {"GROUP": 1 << 13, "threads": threads}):
            same(pair_counts(rows, columns, shape), expected)


@needs_cpp
def test_more_pairs_than_are_counted_at_a_time(monkeypatch):
    monkeypatch.setattr(by_cpp, "MOST", 700)
    rows, columns = zipf(5000, 100), zipf(5000, 120, seed=1)
    same(pair_counts(rows, columns, (100, 120)), pair_counts_ref(rows, columns, (100, 120)))
    rows[3000] = 100
    with pytest.raises(ValueError, match=r"rows\[3000\] is 100, out of range; expected at least 0 and below 100"):
        pair_counts(rows, columns, (100, 120))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.uint32], ids=str)
def test_the_first_index_out_of_range_is_named(name, dtype, set_backend):
    set_backend(name)
    rows, columns = torch.zeros(100, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)
    columns[60], columns[70] = 201, 230
    names = ("cooccurrence", "x", "labels")
    with pytest.raises(ValueError, match=r"^cooccurrence: labels\[60\] is 201, out of range; .* below 201$"):
        pair_counts(rows.to(dtype), columns.to(dtype), (1, 201), names=names)
    for outside in (-(2**63), 2**63 - 1):
        with pytest.raises(ValueError, match=rf"rows\[0\] is {outside}, out of range"):
            pair_counts(torch.tensor([outside]), torch.tensor([0]), (2**31, 2**31))


# ------------------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("name", BACKENDS)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=60),
    cut=st.integers(0, 60),
)
@settings(max_examples=40, deadline=None)
def test_the_sum_of_two_parts_is_the_count_of_all(name, pairs, cut):
    rows, columns = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    with backend.forcing(name):
        a, b = pair_counts(rows[:cut], columns[:cut], (7, 5)), pair_counts(rows[cut:], columns[cut:], (7, 5))
        same(merge_counts(a, b, 5), pair_counts(rows, columns, (7, 5)))
        same(merge_counts(b, a, 5), pair_counts(rows, columns, (7, 5)))


def test_counts_beyond_32_bits_are_added():
    one = pair_counts(torch.tensor([1]), torch.tensor([2]), (3, 4))
    many = Counts(one.crow, one.columns, one.counts * 2**40)
    assert merge_counts(many, one, 4).counts.tolist() == [2**40 + 1]


def test_matrices_of_two_shapes_are_not_added():
    a, b = (pair_counts(torch.tensor([1]), torch.tensor([2]), shape) for shape in ((3, 4), (4, 4)))
    with pytest.raises(ValueError, match="merge_counts: the matrices have 3 and 4 rows; expected one shape"):
        merge_counts(a, b, 4)
    wide = pair_counts(torch.tensor([1]), torch.tensor([2]), (3, 2**31))
    with pytest.raises(ValueError, match=r"columns is torch.int32 on cpu and torch.int64 on cpu; expected one"):
        merge_counts(a, wide, 4)


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 99, 100, 101, 450, 3000])
def test_chunks_of_any_size_give_the_same_bits(name, chunk, set_backend, monkeypatch):
    set_backend(name)
    monkeypatch.setattr(package, "_LEAST", 100)
    monkeypatch.setattr(package, "_MOST", 400)
    rows, columns = zipf(3000, 50), zipf(3000, 70, seed=1)
    counter = PairCounter((50, 70))
    for r, c in zip(rows.split(chunk), columns.split(chunk), strict=True):
        r, c = r.clone(), c.clone()
        counter.add(r, c)
        for x in (r, c):
            x.fill_(0)  # the counter has kept nothing of them
    assert counter.pairs == 3000
    same(counter.csr(), pair_counts_ref(rows, columns, (50, 70)))


def test_a_counter_goes_on_after_it_was_read(monkeypatch):
    monkeypatch.setattr(package, "_LEAST", 100)
    rows, columns = zipf(900, 50), zipf(900, 70, seed=1)
    counter = PairCounter((50, 70))
    same(counter.csr(), pair_counts_ref(rows[:0], columns[:0], (50, 70)))
    for begin, end in ((0, 250), (250, 575), (575, 900)):
        counter.add(rows[begin:end], columns[begin:end])
        same(counter.csr(), pair_counts_ref(rows[:end], columns[:end], (50, 70)))


def test_runs_are_few_and_each_pair_is_merged_few_times(monkeypatch):
    """log₂ of the number of chunks bounds both, where all pairs differ."""
    monkeypatch.setattr(package, "_LEAST", 100)
    merged = []
    merge = PairCounter._merge_last

    def watched(counter):
        merged.append(sum(len(run.columns) for run in counter._runs[-2:]))
        merge(counter)

    monkeypatch.setattr(PairCounter, "_merge_last", watched)
    counter, chunks = PairCounter((8, 100_000)), 256
    order = torch.randperm(100 * chunks, generator=torch.Generator().manual_seed(0))
    for piece in order.split(100):
        counter.add(piece % 8, piece)
        assert len(counter._runs) <= 1 + math.log2(chunks)
    assert sum(merged) <= 100 * chunks * (1 + math.log2(chunks))


def test_the_counters_of_two_shards_are_added(monkeypatch):
    monkeypatch.setattr(package, "_LEAST", 100)
    rows, columns = zipf(1000, 50), zipf(1000, 70, seed=1)
    first, second = PairCounter((50, 70)), PairCounter((50, 70))
    first.add(rows[:370], columns[:370])
    second.add(rows[370:], columns[370:])
    first.merge(second)
    assert (first.pairs, second.pairs) == (1000, 630)
    same(first.csr(), pair_counts_ref(rows, columns, (50, 70)))
    same(second.csr(), pair_counts_ref(rows[370:], columns[370:], (50, 70)))
    first.merge(first)
    assert torch.equal(first.csr().counts, 2 * pair_counts_ref(rows, columns, (50, 70)).counts)
    with pytest.raises(ValueError, match=r"the other counter has shape \(50, 71\); expected \(50, 70\)"):
        first.merge(PairCounter((50, 71)))


@pytest.mark.parametrize("chunk", [30, 250, 1000], ids=["waiting", "sorted-at-once", "in-pieces"])
def test_a_bad_chunk_leaves_the_counter_as_it_was(chunk, monkeypatch):
    monkeypatch.setattr(package, "_LEAST", 100)
    monkeypatch.setattr(package, "_MOST", 400)
    counter = PairCounter((50, 70), names=("fit", "contexts", "tokens"))
    rows, columns = zipf(130, 50), zipf(130, 70, seed=1)
    counter.add(rows, columns)
    bad = torch.zeros(chunk, dtype=torch.int64)
    bad[-1] = 70
    with pytest.raises(ValueError, match=rf"^fit: tokens\[{chunk - 1}\] is 70, out of range; .* below 70$"):
        counter.add(bad * 0, bad)
    assert counter.pairs == 130
    same(counter.csr(), pair_counts_ref(rows, columns, (50, 70)))


# ------------------------------------------------------------------------------------------------ out of core

# RLIMIT_DATA bounds what is writable and private: heaps and anonymous memory, but neither the mapped file nor libraries
OUT_OF_CORE = """
import resource, sys
import numpy as np
import torch
from tropigrad.kernels import pair_counts as package
from tropigrad.kernels.pair_counts import PairCounter, pair_counts

package._LEAST = 1 << 20
path, result, V, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
PairCounter((V, V)).csr()
pair_counts(torch.zeros(9, dtype=torch.uint16), torch.zeros(9, dtype=torch.uint16), (V, V))
status = dict(line.split(":") for line in open("/proc/self/status"))
before = int(status["VmData"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (before + limit, before + limit))

tokens = np.memmap(path, dtype=np.uint16, mode="r")
try:
    np.array(tokens)
except MemoryError:
    print("the file does not fit")
counter, chunk = PairCounter((V, V)), 300_000
for begin in range(0, len(tokens) - 1, chunk):
    piece = torch.from_numpy(np.array(tokens[begin : begin + chunk + 1]))  # a token more: the last pair's column
    counter.add(piece[:-1], piece[1:])
np.savez(result, *(x.numpy() for x in counter.csr()))
"""


@needs_cpp
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds anonymous memory on Linux alone")
def test_a_file_of_twice_the_memory_limit_is_counted_to_the_same_bits(tmp_path):
    V, limit = 250, 40 << 20
    tokens = np.random.default_rng(0).integers(0, 1 << 16, limit, dtype=np.uint16)
    tokens //= 1 + (1 << 16) // V
    tokens.tofile(tmp_path / "tokens.bin")
    assert (tmp_path / "tokens.bin").stat().st_size == 2 * limit
    command = [sys.executable, "-c", textwrap.dedent(OUT_OF_CORE), tmp_path / "tokens.bin", tmp_path / "counts.npz"]
    run = subprocess.run([*map(str, command), str(V), str(limit)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "the file does not fit" in run.stdout
    with np.load(tmp_path / "counts.npz") as saved:
        got = Counts(*(torch.from_numpy(saved[f"arr_{index}"]) for index in range(3)))
    text = torch.from_numpy(tokens)
    same(got, pair_counts(text[:-1], text[1:], (V, V)))
