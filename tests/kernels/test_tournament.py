"""Tournament against torch.max after any history of updates: the same winner, in no more work than the way up."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import Tournament, backend
from tropigrad.kernels.tournament import definition, portable

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why := backend.why_off(name, CPU)), reason=why))
    for name in ("cpp", "torch", "triton")
]
NAN, INF = float("nan"), float("inf")


def agrees(tournament: Tournament, values: torch.Tensor) -> None:
    expected = values.max(-1) if tournament.largest else values.min(-1)
    torch.testing.assert_close(tournament.values, values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(tournament.winner.value, expected.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(tournament.winner.index, expected.indices)


numbers = st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 1.0])
leaf = st.integers(-1, 69)


@pytest.mark.parametrize("largest", [True, False], ids=["max", "min"])
@given(
    start=st.lists(numbers, min_size=70, max_size=70),
    history=st.lists(st.lists(st.tuples(leaf, numbers), min_size=1, max_size=4), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_the_winner_is_torch_max_after_any_history(largest, start, history):
    """Ties, NaN that come and go and infinities; of a position that comes twice, on the CPU the last value stays."""
    values = torch.tensor(start)
    tournament = Tournament(values, largest=largest)
    for step in history:
        positions, new = (torch.tensor(x) for x in zip(*step, strict=True))
        tournament.update(positions, new)
        for position, x in step:
            if position >= 0:
                values[position] = x
        agrees(tournament, values)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 1024, 1025])
def test_a_climb_and_a_build_give_the_same_tree(name, n, set_backend):
    set_backend(name)
    values = torch.randint(-3, 4, (2, n)).float()
    tournament = Tournament(values)
    for touched in (1, 3, n):
        positions = torch.stack([torch.randperm(n)[:touched] for _ in range(2)])
        new = torch.randint(-5, 6, positions.shape).float()
        tournament.update(positions.int(), new)
        values.scatter_(1, positions, new)
        agrees(tournament, values)
    built = Tournament(values)
    if name != "torch":  # which keeps the root alone
        assert torch.equal(tournament._values, built._values)
        assert torch.equal(tournament._indices, built._indices)


@pytest.mark.parametrize("name", BACKENDS)
def test_trees_share_positions_or_values_or_neither(name, set_backend):
    set_backend(name)
    values = torch.randn(2, 3, 40)
    tournament = Tournament(values)
    for positions, new in (
        (torch.tensor([5, 39]), torch.tensor([3.0, 4.0])),
        (torch.tensor([7]), torch.randn(2, 3, 1) + 5),
        (torch.randint(0, 40, (2, 3, 1)), torch.tensor([9.0])),
    ):
        tournament.update(positions, new)
        values.scatter_(-1, positions.expand(2, 3, -1), new.expand(2, 3, -1))
        agrees(tournament, values)
        assert tournament.winner.value.shape == (2, 3)


def test_an_update_plays_the_way_up_alone(set_backend):
    """Nodes off the way are not looked at: spoiled, they stay spoiled."""
    set_backend("cpp")
    if reason := backend.why_off("cpp", CPU):
        pytest.skip(reason)
    tournament = Tournament(torch.arange(32.0**2))
    assert definition.levels(32**2) == [32, 1]
    tournament._indices[0, 3] = -7
    tournament.update(torch.tensor([0]), torch.tensor([5000.0]))
    assert tournament.winner.index.item() == 0
    assert tournament._indices[0, 3] == -7


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_is_written_when_a_position_is_out_of_range(name, set_backend):
    set_backend(name)
    values = torch.randn(50)
    tournament = Tournament(values)
    for bad in (50, -2, 2**31 - 1):
        with pytest.raises(IndexError, match="nothing was written"):
            tournament.update(torch.tensor([3, bad]), torch.tensor([100.0, 100.0]))
        agrees(tournament, values)


@pytest.mark.skipif(bool(backend.why_off("triton", CPU)), reason="no interpreter")
def test_on_a_gpu_a_position_out_of_range_is_masked():
    tournament = Tournament(torch.arange(40.0))
    buffers = tournament._leaves, tournament._values, tournament._indices
    before = tournament._leaves.clone()
    positions = torch.tensor([[40, -2, 2**40, -(2**40)]])
    portable.update(*buffers, positions, torch.full((1, 4), 99.0), True)
    agrees(tournament, before[0])


def test_later_changes_of_the_input_do_not_reach_it():
    values = torch.zeros(3)
    tournament = Tournament(values)
    values[1] = 5
    assert tournament.winner.value == 0


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda tournament: pickle.loads(pickle.dumps(tournament)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_go_their_own_way(copied):
    values = torch.randn(3, 100)
    tournament = Tournament(values, largest=False)
    other = copied(tournament)
    other.update(torch.tensor([50]), torch.tensor([-100.0]))
    agrees(tournament, values)
    values[:, 50] = -100
    agrees(other, values)


def test_a_state_comes_back():
    tournament = Tournament(torch.randn(2, 100))
    tournament.update(torch.tensor([7]), torch.tensor([100.0]))
    file = io.BytesIO()
    torch.save(tournament.state_dict(), file)
    file.seek(0)
    other = Tournament(torch.zeros(2, 100))
    other.load_state_dict(torch.load(file, weights_only=True))
    agrees(other, tournament.values)
    for wrong, match in (({}, "keys"), ({"values": torch.zeros(2, 9)}, r"\(2, 9\); expected .*\(2, 100\)")):
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(wrong)
    agrees(other, tournament.values)


def test_it_compiles_into_one_graph_and_can_be_updated_there():
    tournament = Tournament(torch.randn(100))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(positions, new):
        tournament.update(positions, new)
        return tournament.winner.value + 0

    for k in range(3):
        positions, new = torch.tensor([k, 50 + k]), torch.randn(2) * 10
        best = step(positions, new)
        assert best == tournament.values.max()
        agrees(tournament, tournament.values.clone())
