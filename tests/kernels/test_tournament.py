"""Tournament against torch.max after any history of updates: the same winner, in no more work than the way up."""

import copy
import io
import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import Tournament
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.tournament import by_triton, definition

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
    by_triton.update(*buffers, positions, torch.full((1, 4), 99.0), True)
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


# ------------------------------------------------------------------------------------------------ operands in the tree


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("touched", [2, 8, 39])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_new_values_may_be_views_of_the_trees_own(name, touched, batch, set_backend):
    """As if copied: neighbours that move up one place must not hand on the first of them."""
    set_backend(name)
    values = torch.randn(*batch, 40)
    tournament = Tournament(values)
    tournament.update(torch.arange(1, touched + 1), tournament.values[..., :touched])
    values[..., 1 : touched + 1] = values[..., :touched].clone()
    agrees(tournament, values)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_update_may_be_where_the_winner_is(name, set_backend):
    """Positions and values that are views of the nodes, which the update changes."""
    set_backend(name)
    values = torch.randn(3, 1100)
    tournament = Tournament(values)
    index = tournament.winner.index.clone()
    tournament.update(tournament.winner.index.unsqueeze(-1), torch.full((1,), -9.0))
    values.scatter_(-1, index.unsqueeze(-1), -9.0)
    agrees(tournament, values)
    first = tournament.winner.value.clone()
    tournament.update(torch.tensor([0]), tournament.winner.value.unsqueeze(-1))
    values[:, 0] = first
    agrees(tournament, values)
    if name == "torch":
        return  # it keeps the root alone
    nodes = tournament._indices[:1, :2].flatten()  # of leaves, as the winner's is
    before = nodes.clone()
    single = Tournament(values[0])
    single.update(before, torch.tensor([9.0, 8.0]))
    tournament.update(nodes, torch.tensor([[9.0, 8.0]]).expand(3, 2))
    assert torch.equal(tournament.values[0], single.values)


def test_memory_is_compared_and_not_its_owner():
    tournament = Tournament(torch.arange(8.0))
    again = torch.from_numpy(tournament.values.numpy())
    tournament.update(torch.arange(1, 8), again[:7])
    agrees(tournament, torch.tensor([0.0, 0, 1, 2, 3, 4, 5, 6]))


def test_compiled_an_update_may_be_of_the_trees_own_values():
    tournament = Tournament(torch.arange(8.0))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step():
        tournament.update(torch.arange(1, 8), tournament.values[:7])

    step()
    agrees(tournament, torch.tensor([0.0, 0, 1, 2, 3, 4, 5, 6]))


# ------------------------------------------------------------------------------------------------ odd company


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 0, 5)], ids=str)
def test_no_tree_is_none_to_wait_for(name, shape, set_backend):
    set_backend(name)
    values = torch.zeros(shape)
    tournament = Tournament(values)
    assert repr(tournament) == f"Tournament(shape={shape}, dtype=torch.float32, device=cpu, largest=True)"
    tournament.update(torch.tensor([1, 4]), torch.ones(2))
    tournament.update(torch.zeros(*shape[:-1], 2, dtype=torch.int64), torch.zeros(*shape[:-1], 2))
    for one in (tournament, copy.deepcopy(tournament), pickle.loads(pickle.dumps(tournament))):
        assert one.values.shape == shape
        assert one.winner.value.shape == one.winner.index.shape == shape[:-1]
    other = Tournament(values)
    other.load_state_dict(tournament.state_dict())
    assert other.values.shape == shape


def test_a_saved_tournament_comes_back_whole():
    tournament = Tournament(torch.randn(2, 100), largest=False)
    file = io.BytesIO()
    torch.save({"tournament": tournament, "winner": tournament.winner.value}, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    found["tournament"].update(torch.tensor([3]), torch.tensor([-50.0]))
    assert found["tournament"].winner.index.tolist() == [3, 3]
    assert tournament.winner.value.min() > -50


def test_lazy_negations_have_their_own_sign():
    z = torch.randn(3, 40, dtype=torch.complex64)
    tournament = Tournament(z.conj().imag)
    agrees(tournament, -z.imag)
    other = Tournament(torch.zeros(3, 40))
    other.update(torch.arange(40), z.conj().imag)
    agrees(other, -z.imag)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_memory_of_its_own_is_named():
    tournament = Tournament(torch.zeros(4))
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
    lazy = torch.nn.parameter.UninitializedParameter()
    position = torch.tensor([0])
    for call, match in (
        (lambda: Tournament(nested), "values is a nested tensor"),
        (lambda: Tournament(lazy), "values is an UninitializedParameter"),
        (lambda: tournament.update(position, nested), "values is a nested tensor"),
        (lambda: tournament.update(lazy, torch.ones(1)), "positions is an UninitializedParameter"),
        (lambda: tournament.update(position.to_sparse(), torch.ones(1)), "positions has layout torch.sparse_coo"),
        (lambda: tournament.load_state_dict(cast(Any, {"values": [0.0] * 4})), "the state's values is a list"),
    ):
        with pytest.raises(TypeError, match=f"Tournament: {match}"):
            call()
    with pytest.raises(ValueError, match="Tournament: the state has no dict, but a list"):
        tournament.load_state_dict(cast(Any, [1]))
    agrees(tournament, torch.zeros(4))


@pytest.mark.parametrize("name", BACKENDS)
def test_another_default_device_changes_nothing(name, set_backend):
    set_backend(name)
    values, positions, new = torch.randn(2, 70), torch.tensor([5, 69]), torch.randn(2) + 9
    with torch.device("meta"):
        tournament = Tournament(values)
        tournament.update(positions, new)
        other = copy.deepcopy(tournament)
        other.load_state_dict(tournament.state_dict())
    values[:, positions] = new
    agrees(tournament, values)
    agrees(other, values)


def test_vmap_is_refused_by_name():
    tournament = Tournament(torch.zeros(4))
    for maps in (0, 2):
        with pytest.raises(NotImplementedError, match=r"Tournament: vmap does not apply.*a batch of their own"):
            torch.vmap(lambda x: (tournament.update(torch.tensor([1]), x), x)[1])(torch.ones(maps, 1))
