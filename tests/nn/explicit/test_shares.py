"""Language models that ranks share out: one pass over texts in parts, and the answers of one process, bit for bit."""

import pytest

RANK = """
import numpy as np
from tropigrad.nn import ExplicitLanguageModel

V, B = 11, 10
drawn = np.random.default_rng(0)
lengths = [700, 1900, 5, 1200][:ranks]
texts = [drawn.choice(V, size=n, p=np.arange(V, 0, -1) / 66).astype(np.uint16) for n in lengths]
held = [drawn.choice(V, size=n, p=np.arange(V, 0, -1) / 66).astype(np.uint16) for n in (3000, 900, 40, 60)[:ranks]]
for text in held:
    text[0] = text[-1] = B  # so that no context reaches from one into the next where they lie behind one another
texts[rank].tofile(f"{folder}/{rank}.bin")
contexts = drawn.integers(0, V, (40, 3))


def message(call):
    try:
        return f"none: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def same(model, other, radius):
    asked = torch.from_numpy(contexts[rank:, :radius].copy())
    return [
        torch.equal(model.predict_log_proba(asked), other.predict_log_proba(asked)),
        model.sample(12, [1, 2], seed=3) == other.sample(12, [1, 2], seed=3),
        model.sample(5, seed=3) == other.sample(5, seed=3),
    ]


for mode, radius, options in (
    ("sum", 3, {}), ("cat", 2, {"smoothing_prior": "unigram"}), ("suffix", 3, {"boundary": B}), ("suffix", 1, {})):
    name, made = f"{mode} {radius}", lambda **more: ExplicitLanguageModel(V, radius, mode, **{**options, **more})
    alone = made().fit(texts[0])
    for text in texts[1:]:
        alone.partial_fit(text)
    shared = made().fit(f"{folder}/{rank}.bin", chunk=300, group=group)
    said[name] = same(shared, alone, radius)
    everything = np.concatenate(held)
    said[f"{name}, loss"] = [shared.cross_entropy(held[rank])]
    parts = [None] * ranks
    dist.all_gather_object(parts, shared.state_dict())
    whole = ExplicitLanguageModel.from_state_dict(parts[0])
    for part in parts[1:]:
        whole.merge(ExplicitLanguageModel.from_state_dict(part))
    said[name] += [torch.equal(whole.counts_.to_dense(), alone.counts_.to_dense()),
                   torch.equal(whole.token_counts_, alone.token_counts_), whole.positions_ == alone.positions_]
    nnz = [len(part["counts"][1]) for part in parts]
    said[f"{name}, shares"] = [sum(nnz) == len(alone.counts_.values()), max(nnz) < 0.9 * sum(nnz)]
    again = made().partial_fit(texts[rank]).share(group)
    said[name] += same(again, alone, radius)
    restored = ExplicitLanguageModel.from_state_dict(shared.state_dict()).share(group)
    said[name] += same(restored, alone, radius)
    joined = alone.cross_entropy(everything) if "boundary" in options else None
    said[f"{name}, loss"] += [joined]
    if "boundary" not in options:
        continue
    searched = made(smoothing="search", weights="search").partial_fit(texts[rank]).share(group).tune(held[rank])
    one = made(smoothing="search", weights="search")
    for text in texts:
        one.partial_fit(text)
    one.tune(everything)
    numbers = [None] * ranks
    dist.all_gather_object(numbers, (searched.smoothing_, searched.weights_.tolist()))
    said["search"] = [(one.smoothing_, one.weights_.tolist()) == of_rank for of_rank in numbers]

model = ExplicitLanguageModel(V, 2, "suffix", smoothing="search", weights="search").fit(held[rank], group=group)
said["fit searches"] = [model.smoothing_, model.weights_.tolist(), model.cross_entropy(held[rank])]
model = ExplicitLanguageModel(V, 3, "suffix").fit(np.zeros(9, np.int64), group=group)
alone = ExplicitLanguageModel(V, 3, "suffix")
for _ in range(ranks):
    alone.partial_fit(np.zeros(9, np.int64))
said["nothing was seen"] = same(model, alone, 3)

bad = texts[rank].copy()
if rank == 1:
    bad[650] = V
model = ExplicitLanguageModel(V, 2).fit(texts[rank], group=group)
before = model.predict_log_proba(torch.tensor([[1, 2]]))
said["bad token"] = message(lambda: model.partial_fit(bad, chunk=200))
said["unchanged"] = torch.equal(before, model.predict_log_proba(torch.tensor([[1, 2]])))
said["no file"] = message(lambda: model.fit(f"{folder}/{rank + 1 if rank == ranks - 1 else rank}.bin", group=group))
said["settings"] = message(lambda: ExplicitLanguageModel(V, 2, smoothing=1.0 + rank).fit(texts[rank], group=group))
said["merge"] = message(lambda: model.merge(model))
said["arpa"] = message(
    lambda: ExplicitLanguageModel(V, smoothing_prior="unigram").fit(texts[rank], group=group).to_arpa(f"{folder}/x"))
said["no counts"] = message(lambda: ExplicitLanguageModel(V, 2).share(group))
said["twice"] = message(lambda: model.share(group))
"""

MODELS = ["sum 3", "cat 2", "suffix 3", "suffix 1"]


@pytest.fixture(scope="module")
def two(run_ranks):
    return run_ranks(2, RANK)


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_have_the_model_of_one_process(two, name):
    for said in two:
        assert len(said[name]) > 10
        assert all(said[name])
        assert all(said[f"{name}, shares"])
    assert two[0][f"{name}, loss"][0] == two[1][f"{name}, loss"][0]


def test_the_loss_is_of_all_texts(two):
    loss, joined = two[0]["suffix 3, loss"]
    assert loss == pytest.approx(joined, rel=1e-13)


def test_a_search_holds_the_ends_of_all_texts_out(two):
    assert two[0]["fit searches"] == two[1]["fit searches"]
    assert all(said["search"] == [True, True] for said in two)


def test_contexts_that_no_rank_has_seen(two):
    assert [said["nothing was seen"] for said in two] == 2 * [[True, True, True]]


def test_all_ranks_refuse_where_one_does_and_say_why(two):
    first, second = two
    assert (
        second["bad token"]
        == "ValueError: ExplicitLanguageModel: token 11 at position 650; expected 0 to 10 (vocabulary 11)"
    )
    assert (
        first["bad token"] == f"ValueError: ExplicitLanguageModel: rank 1 refused its rows: {second['bad token'][12:]}"
    )
    assert first["unchanged"]
    assert second["unchanged"]
    assert "rank 1 refused its rows: ExplicitLanguageModel: " in first["no file"]
    assert "No such file" in second["no file"]
    for said in two:
        assert "the settings: {'vocabulary': 11" in said["settings"]
        assert "merge got a model that ranks share out; expected a whole one: in one process" in said["merge"]
        assert "to_arpa got a model that ranks share out" in said["arpa"]
        assert "share got models without counts; fit one first" in said["no counts"]
        assert "share got a model that ranks share out" in said["twice"]


@pytest.mark.slow
def test_so_it_is_on_four_ranks_of_which_one_has_next_to_nothing(run_ranks):
    for said in run_ranks(4, RANK):
        assert all(all(said[name]) for name in (*MODELS, "search"))
