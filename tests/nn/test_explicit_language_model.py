"""ExplicitLanguageModel: counts, the probabilities they give, weights from held-out text, and what it refuses."""

from __future__ import annotations

import copy
import math
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tropigrad.nn import ExplicitLanguageModel
from tropigrad.nn.explicit import language_model
from tropigrad.nn.explicit.contexts import Mode

V = 5


def text(length: int = 400, seed: int = 0) -> np.ndarray:
    """Tokens that depend on the two before them."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(V, 0.3), (V, V))
    tokens = [0, 1]
    while len(tokens) < length:
        tokens.append(rng.choice(V, p=table[tokens[-2], tokens[-1]]))
    return np.array(tokens)


def rows_of(mode: str, tokens: np.ndarray, radius: int) -> dict:
    """(order, suffix) → row, as the three modes number them."""
    rows: dict = {}
    for order in range(1, radius + 1):
        seen = {tuple(tokens[m - order : m]) for m in range(radius, len(tokens))}
        if mode == "suffix":
            for key in sorted(seen, key=lambda suffix: sum(t * V**j for j, t in enumerate(reversed(suffix)))):
                rows[order, key] = len(rows)
        else:
            first = 0 if mode == "sum" else V * (order - 1)
            rows |= {(order, key): first + key[0] for key in seen}
    return rows


def fitted(mode: Mode = "suffix", radius: int = 2, **settings) -> ExplicitLanguageModel:
    return ExplicitLanguageModel(V, radius, mode, **settings).fit(text())


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("mode", ["sum", "cat", "suffix"])
def test_counts_and_probabilities_are_those_of_the_definition(mode, radius):
    tokens = text()
    weights = [0.5] * radius + [0.25]
    model = ExplicitLanguageModel(V, radius, mode, smoothing=0.2, weights=weights).fit(tokens)
    rows = rows_of(mode, tokens, radius)
    sizes = {"sum": V, "cat": V * radius, "suffix": len(rows)}
    counts = np.zeros((sizes[mode], V), dtype=np.int64)
    for m in range(radius, len(tokens)):
        for order in range(1, radius + 1):
            counts[rows[order, tuple(tokens[m - order : m])], tokens[m]] += 1
    assert np.array_equal(model.counts_.to_dense().numpy(), counts)

    F = counts + 0.2
    S = F.sum(0)
    contexts = np.lib.stride_tricks.sliding_window_view(tokens, radius)[:-1]
    logits = np.stack(
        [
            sum(0.5 * np.log(F[rows[order, tuple(context[radius - order :])]]) for order in range(1, radius + 1))
            - 0.25 * np.log(S)
            for context in contexts
        ]
    )
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.allclose(model.predict_log_proba(contexts), expected, atol=1e-6)
    losses = -expected[np.arange(len(contexts)), tokens[radius:]]
    assert math.isclose(model.cross_entropy(tokens), losses.mean(), rel_tol=1e-6)
    assert math.isclose(model.perplexity(tokens), math.exp(losses.mean()), rel_tol=1e-5)


def test_dense_counts_of_the_papers_form_are_shared_by_all_distances():
    model = fitted("sum", 3)
    positions = len(text()) - 3
    assert model.counts_.shape == (V, V)
    assert int(model.counts_.values().sum()) == 3 * positions == 3 * model.positions_
    assert torch.equal(model.counts_.to_dense().sum(0), 3 * model.token_counts_)


def test_an_unseen_suffix_adds_the_smoothing_row_alone():
    tokens = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    model = ExplicitLanguageModel(V, 2, "suffix", smoothing=0.5, weights=[1, 1, 0]).fit(tokens)
    known = ExplicitLanguageModel(V, 1, "suffix", smoothing=0.5, weights=[1, 0]).fit(tokens[1:])
    unseen = model.predict_log_proba(np.array([[2, 1]]))  # "1" was seen, "2 1" never
    assert np.allclose(unseen, known.predict_log_proba(np.array([[1]])), atol=1e-6)


# ---------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("mode", ["cat", "suffix"])
def test_any_source_and_any_chunk_count_alike(mode, tmp_path):
    tokens = text()
    whole = ExplicitLanguageModel(V, 3, mode).fit(tokens).counts_
    np.save(tmp_path / "tokens.npy", tokens)
    tokens.astype("<u2").tofile(tmp_path / "tokens.bin")
    tokens.astype("<i4").tofile(tmp_path / "wide.bin")
    sources = {
        "tensor": torch.from_numpy(tokens),
        "uint16": tokens.astype(np.uint16),
        "memmap": np.memmap(tmp_path / "tokens.bin", "<u2", mode="r"),
        "npy": tmp_path / "tokens.npy",
        "bin": str(tmp_path / "tokens.bin"),
    }
    for name, source in sources.items():
        for chunk in (1, 7, 1000):
            counts = ExplicitLanguageModel(V, 3, mode).fit(source, chunk=chunk).counts_
            assert torch.equal(counts.to_dense(), whole.to_dense()), (name, chunk)
            assert torch.equal(counts.values(), whole.values()), (name, chunk)
    wide = ExplicitLanguageModel(V, 3, mode).fit(tmp_path / "wide.bin", dtype="int32")
    assert torch.equal(wide.counts_.to_dense(), whole.to_dense())


@pytest.mark.parametrize("mode", ["sum", "cat", "suffix"])
def test_partial_fits_and_merges_add_up(mode):
    parts = [text(120, seed) for seed in range(3)]
    together = ExplicitLanguageModel(V, 2, mode)
    for part in parts:
        together.partial_fit(part)
    one, *others = (ExplicitLanguageModel(V, 2, mode).fit(part) for part in parts)
    for other in others:
        one.merge(other)
    assert torch.equal(one.counts_.to_dense(), together.counts_.to_dense())
    assert torch.equal(one.token_counts_, together.token_counts_)
    assert one.positions_ == together.positions_ == 3 * 118
    contexts = np.array([[0, 1], [4, 4], [2, 3]])
    assert np.array_equal(one.predict_log_proba(contexts), together.predict_log_proba(contexts))


def test_fit_begins_afresh():
    model = fitted()
    assert torch.equal(model.fit(text(seed=1)).counts_.to_dense(), fitted().fit(text(seed=1)).counts_.to_dense())


def test_no_context_reaches_back_over_a_boundary():
    first, second = text(60, 1), text(60, 2)
    first[first == 4], second[second == 4] = 0, 0
    joined = np.concatenate([[4], first, [4], second, [4]])
    model = ExplicitLanguageModel(V, 2, "suffix", boundary=4).fit(joined)
    apart = ExplicitLanguageModel(V, 2, "suffix")
    for part in (first, second):
        apart.partial_fit(np.concatenate([[4], part, [4]]))
    assert torch.equal(model.counts_.to_dense(), apart.counts_.to_dense())


def test_copies_are_independent():
    model = fitted()
    before = model.counts_.to_dense()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.partial_fit(text(seed=3))
        assert torch.equal(model.counts_.to_dense(), before)
        assert twin.positions_ == 2 * model.positions_


# ---------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("mode", ["sum", "cat", "suffix"])
def test_weights_are_the_minimum_of_a_convex_loss(mode):
    train, held = text(2000), text(2000)[1200:]
    model = ExplicitLanguageModel(V, 2, mode, 0.1, "search").partial_fit(train[:1200])
    model.tune(held)

    def loss(weights):
        fixed = ExplicitLanguageModel(V, 2, mode, 0.1, weights.tolist()).fit(train[:1200])
        return fixed.cross_entropy(held)

    best = loss(model.weights_)
    for direction in torch.eye(3, dtype=torch.float64):
        for step in (-0.05, 0.05):
            assert loss(model.weights_ + step * direction) > best - 1e-6
    paper = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    middle = loss((model.weights_ + paper) / 2)
    assert best <= middle <= (best + loss(paper)) / 2


def test_fit_holds_the_end_out_and_then_counts_it():
    tokens = text(1000)
    model = ExplicitLanguageModel(V, 2, "suffix", 0.1, "search", validation_fraction=0.25).fit(tokens)
    cut = len(tokens) - math.ceil((len(tokens) - 2) * 0.25)
    apart = ExplicitLanguageModel(V, 2, "suffix", 0.1, "search").partial_fit(tokens[:cut]).tune(tokens[cut - 2 :])
    assert torch.equal(model.weights_, apart.weights_)
    plain = ExplicitLanguageModel(V, 2, "suffix", 0.1).fit(tokens)
    assert torch.equal(model.counts_.to_dense(), plain.counts_.to_dense())


def test_a_searched_smoothing_is_no_worse_than_its_neighbours():
    tokens = text(2000)
    model = ExplicitLanguageModel(V, 2, "suffix", "search", "search").partial_fit(tokens[:1000]).tune(tokens[1000:])
    best = model.cross_entropy(tokens[1000:])
    for factor in (10**-0.5, 10**0.5):
        other = ExplicitLanguageModel(V, 2, "suffix", factor * model.smoothing_, "search")
        assert other.partial_fit(tokens[:1000]).tune(tokens[1000:]).cross_entropy(tokens[1000:]) >= best - 1e-6


def test_weights_are_fitted_to_evenly_spaced_positions(monkeypatch):
    monkeypatch.setattr(language_model, "_TUNED_ON", 4)
    seen = []
    readout = language_model.gather_softmax

    def recorded(weight, rows, targets, **settings):
        seen.append((rows, targets))
        return readout(weight, rows, targets, **settings)

    monkeypatch.setattr(language_model, "gather_softmax", recorded)
    tokens = text(32)
    ExplicitLanguageModel(V, 1, weights="search").partial_fit(tokens).tune(tokens)
    for rows, targets in seen:
        assert rows[:, 0].tolist() == [tokens[m] for m in (0, 10, 20, 30)]
        assert targets.tolist() == [tokens[m + 1] for m in (0, 10, 20, 30)]
    assert seen


# ---------------------------------------------------------------------------------------------------- sampling


def test_samples_are_drawn_from_the_models_own_probabilities():
    model = fitted("suffix", 2, weights="search")
    context = [3, 1]
    draws = [model.sample(1, context, seed=seed)[0] for seed in range(500)]
    shares = np.bincount(draws, minlength=V) / len(draws)
    expected = np.exp(model.predict_log_proba(np.array([context]))[0])
    assert np.abs(shares - expected).max() < 5 * math.sqrt(0.25 / len(draws))


def test_samples_repeat_by_seed_and_keep_to_top_k():
    model = fitted()
    assert model.sample(30, [1, 2], seed=4) == model.sample(30, [1, 2], seed=4)
    assert model.sample(30, [1, 2], seed=4) != model.sample(30, [1, 2], seed=5)
    tokens = [0, 1, *model.sample(30, [0, 1], top_k=1)]
    likeliest = model.predict_log_proba(np.array(list(pairwise(tokens[:-1])))).argmax(1)
    assert tokens[2:] == likeliest.tolist()


def test_without_a_context_the_papers_form_begins_by_the_prior():
    model = fitted("sum", 3, smoothing=1e-6)
    draws = np.bincount([model.sample(1, seed=seed)[0] for seed in range(500)], minlength=V) / 500
    prior = model.token_counts_.numpy() / model.positions_
    assert np.abs(draws - prior).max() < 5 * math.sqrt(0.25 / 500)


# ---------------------------------------------------------------------------------------------------- ARPA


def read_arpa(path: Path) -> tuple[dict, dict]:
    unigrams, bigrams, section = {}, {}, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("\\"):
            section = int(line[1]) if line[1].isdigit() else 0
        elif section == 1 and line:
            p, word, backoff = line.split("\t")
            unigrams[word] = float(p), float(backoff)
        elif section == 2 and line:
            p, pair = line.split("\t")
            bigrams[tuple(pair.split())] = float(p)
    return unigrams, bigrams


def test_an_arpa_file_gives_back_the_models_probabilities(tmp_path):
    model = ExplicitLanguageModel(V, smoothing=0.1, smoothing_prior="unigram").fit(text(60))
    path = tmp_path / "model.arpa"
    model.to_arpa(path, words=["a", "b", "c", "d", "ü"])
    unigrams, bigrams = read_arpa(path)
    assert 0 < len(bigrams) < V * V
    log_p = model.predict_log_proba(np.arange(V)[:, None]) / math.log(10)
    for h, history in enumerate("abcdü"):
        for i, word in enumerate("abcdü"):
            backed_off = unigrams[history][1] + unigrams[word][0]
            assert math.isclose(bigrams.get((history, word), backed_off), log_p[h, i], abs_tol=1e-6)
    assert os.listdir(tmp_path) == ["model.arpa"]


def test_kenlm_reads_the_arpa_file(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
    model = ExplicitLanguageModel(V, smoothing=0.1, smoothing_prior="unigram").fit(text(60))
    model.to_arpa(tmp_path / "model.arpa")
    reader = kenlm.Model(str(tmp_path / "model.arpa"))
    log_p = model.predict_log_proba(np.arange(V)[:, None]) / math.log(10)
    for h in range(V):
        for i in range(V):
            state, after = kenlm.State(), kenlm.State()
            reader.NullContextWrite(state)
            reader.BaseScore(state, str(h), after)
            assert math.isclose(reader.BaseScore(after, str(i), state), log_p[h, i], abs_tol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", ">i4"])
def test_contexts_of_any_integers(dtype):
    model, contexts = fitted(), np.array([[0, 1], [2, 3]])
    expected = model.predict_log_proba(contexts)
    assert np.array_equal(model.predict_log_proba(contexts.astype(dtype)), expected)
    if dtype[0] != ">":
        tensor = torch.from_numpy(contexts.astype(dtype))
        assert np.array_equal(np.asarray(model.predict_log_proba(tensor)), expected)


@pytest.mark.parametrize("mode", ["sum", "cat", "suffix"])
def test_the_default_device_and_dtype_of_others_do_not_matter(mode, tmp_path):
    def answers():
        model = fitted(mode, weights="search")
        fitted("sum", 1, smoothing_prior="unigram").to_arpa(str(tmp_path / "model.arpa"))
        return model.perplexity(text()), model.sample(5), model.sample(5, [1]), (tmp_path / "model.arpa").read_text()

    expected = answers()
    with torch.device("meta"):
        assert answers() == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert answers() == expected
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"radius": 0}, "radius is 0"),
        ({"mode": "bag"}, "mode is 'bag'"),
        ({"smoothing": 0.0}, "smoothing is 0.0"),
        ({"smoothing": -1.0}, "smoothing is -1.0"),
        ({"weights": [1.0]}, "expected None, 'search' or 3 finite numbers"),
        ({"weights": [1.0, math.nan, 0.0]}, "expected None, 'search' or 3 finite numbers"),
        ({"weights": "best"}, "weights is 'best'"),
        ({"smoothing_prior": "bigram"}, "smoothing_prior is 'bigram'"),
        ({"boundary": 5}, "boundary is 5"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"vocabulary": 50_000, "radius": 5, "mode": "suffix"}, "up to radius 4"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match="ExplicitLanguageModel: ") as error:
        ExplicitLanguageModel(**{"vocabulary": V, "radius": 2, **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (np.array([0, 1, 2, 5, 1]), ValueError, "token 5 at position 3; expected 0 to 4"),
        (torch.tensor([0, -1, 2]), ValueError, "token -1 at position 1"),
        (np.array([0, 1]), ValueError, "length 2; expected more than the radius, 2"),
        (np.zeros((3, 3), dtype=int), ValueError, "shape (3, 3); expected one dimension"),
        (np.zeros(9), TypeError, "dtype float64; expected integers"),
        ([0, 1, 2], TypeError, "tokens is a list"),
        ("absent.bin", ValueError, "absent.bin"),
    ],
    ids=["too large", "negative", "short", "two dimensions", "floats", "list", "no file"],
)
def test_a_refused_text_changes_nothing(call, tokens, error, words):
    model = fitted()
    before = copy.deepcopy(model)
    with pytest.raises(error, match="ExplicitLanguageModel: ") as raised:
        getattr(model, call)(tokens, chunk=2)
    assert words in str(raised.value)
    assert torch.equal(model.counts_.to_dense(), before.counts_.to_dense())
    assert torch.equal(model.token_counts_, before.token_counts_)
    assert torch.equal(model.weights_, before.weights_)
    assert model.positions_ == before.positions_


def test_bad_files_are_named(tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "odd.bin").write_bytes(b"123")
    for name, words in (("empty.bin", "is empty"), ("odd.bin", "3 bytes, no whole number of uint16")):
        with pytest.raises(ValueError, match=words):
            ExplicitLanguageModel(V).fit(tmp_path / name)
    with pytest.raises(TypeError, match="dtype is 'float32'"):
        ExplicitLanguageModel(V).fit(tmp_path / "odd.bin", dtype="float32")


@pytest.mark.parametrize("mode", ["sum", "suffix"])
def test_a_text_of_boundaries_alone_has_no_context(mode):
    model = ExplicitLanguageModel(V, 2, mode, boundary=0)
    with pytest.raises(ValueError, match="no whole context of 2 tokens without the boundary"):
        model.fit(np.zeros(50, dtype=int))
    assert model.positions_ == 0


def test_calls_that_come_too_early_say_what_to_call():
    model = ExplicitLanguageModel(V, weights="search")
    with pytest.raises(ValueError, match="call fit first"):
        model.perplexity(text())
    model.partial_fit(text())
    with pytest.raises(ValueError, match="call tune"):
        model.perplexity(text())
    with pytest.raises(ValueError, match="nothing to choose"):
        fitted().tune(text())
    with pytest.raises(ValueError, match="holds 1 out; expected more"):
        ExplicitLanguageModel(V, weights="search").fit(text()[:2])
    with pytest.raises(ValueError, match="radius 2"):
        fitted().to_arpa("never.arpa")
    with pytest.raises(ValueError, match="merge got a model of radius 1"):
        fitted().merge(fitted(radius=1))
    with pytest.raises(TypeError, match="merge got a dict"):
        fitted().merge({})  # pyright: ignore[reportArgumentType]


def test_bad_contexts_are_named():
    model = fitted()
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \[B, 2\]"):
        model.predict_log_proba(np.zeros((2, 3), dtype=int))
    with pytest.raises(ValueError, match="token 7 in row 1"):
        model.predict_log_proba(np.array([[0, 1], [2, 7]]))
    with pytest.raises(TypeError, match="contexts has dtype float64; expected integers"):
        model.predict_log_proba(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="token 9 at 0"):
        model.sample(3, [9])
    with pytest.raises(ValueError, match="temperature is 0"):
        model.sample(3, temperature=0)
    with pytest.raises(TypeError, match=r"seed is 0\.5; expected an integer"):
        model.sample(3, seed=0.5)  # pyright: ignore[reportArgumentType]
