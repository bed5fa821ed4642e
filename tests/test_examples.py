"""The examples on small inputs: against other methods, at their edges, and with input that they must refuse."""

import importlib.util
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse import csgraph

FOLDER = Path(__file__).parent.parent / "examples"
INF = float("inf")


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shortest_paths, viterbi, edge_detector, annealing = map(
    example, ("shortest_paths", "viterbi", "edge_detector", "annealing")
)


# ------------------------------------------------------------------------------------------------ shortest paths


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_distances_equal_scipys_and_routes_are_that_long(nodes, seed):
    """Directed graphs with zero and negative lengths; potentials keep the cycles from being negative."""
    random = np.random.default_rng(seed)
    potentials = random.integers(0, 9, nodes)
    lengths = random.integers(0, 9, (nodes, nodes)) + potentials[:, None] - potentials
    lengths = np.where(random.random((nodes, nodes)) < 0.4, lengths, INF)
    distances, winners = shortest_paths.shortest_paths(torch.from_numpy(lengths))
    graph = csgraph.csgraph_from_dense(lengths, null_value=INF)
    np.testing.assert_array_equal(distances.numpy(), csgraph.johnson(graph))
    for start, goal in distances.isfinite().nonzero().tolist():
        way = shortest_paths.route(winners, start, goal)
        assert (way[0], way[-1]) == (start, goal)
        roads = [lengths[i, j] for i, j in pairwise(way) if i != j]
        assert sum(roads) == distances[start, goal]


def test_nodes_without_roads_stay_unreachable():
    distances, winners = shortest_paths.shortest_paths(torch.full((3, 3), INF))
    assert torch.equal(distances, torch.full((3, 3), INF).fill_diagonal_(0))
    assert not winners


@pytest.mark.parametrize("nodes", [1, 2, 5, 16, 17])
def test_a_negative_cycle_is_named(nodes):
    lengths = torch.full((nodes, nodes), INF)
    for i in range(nodes):
        lengths[i, (i + 1) % nodes] = 1.0
    lengths[-1, 0] = -nodes
    cycle = " → ".join(map(str, [*range(nodes), 0]))
    with pytest.raises(ValueError, match=f"shortest_paths: lengths hold the negative cycle {cycle};"):
        shortest_paths.shortest_paths(lengths)
    lengths[-1, 0] = 1 - nodes  # of length zero: allowed
    shortest_paths.shortest_paths(lengths)


@pytest.mark.parametrize(
    ("lengths", "match"),
    [
        (torch.zeros(0, 0), r"shape \(0, 0\), an empty graph; expected at least one node"),
        (torch.zeros(2, 3), r"shape \(2, 3\); expected \[N, N\]"),
        (torch.zeros(3), r"shape \(3,\); expected \[N, N\]"),
        (torch.full((2, 2), float("nan")), "lengths hold NaN or -inf"),
        (torch.full((2, 2), -INF), "lengths hold NaN or -inf"),
    ],
    ids=["empty", "oblong", "vector", "nan", "minus-infinity"],
)
def test_no_graph_is_refused(lengths, match):
    with pytest.raises(ValueError, match=match):
        shortest_paths.shortest_paths(lengths)


# ------------------------------------------------------------------------------------------------ Viterbi


@pytest.mark.parametrize("times", [1, 2, 25])
def test_decoding_equals_the_plain_dynamic_programme(times):
    _, _, model = viterbi.noisy_levels(sequences=5, times=times, seed=times)
    states, log_probability = viterbi.viterbi(*model)
    initial, transition, emission = (x.numpy() for x in model)
    for b, sequence in enumerate(emission):
        path, score = viterbi.plain_viterbi(initial, transition, sequence)
        assert states[b].tolist() == path
        assert log_probability[b].item() == pytest.approx(score, rel=1e-12)


def test_a_forbidden_transition_is_never_taken():
    initial, emission = torch.zeros(2), torch.tensor([[[0.0, -1.0], [-1.0, 0.0], [0.0, -1.0]]])
    transition = torch.tensor([[0.0, 0.0], [-INF, 0.0]])
    states, log_probability = viterbi.viterbi(initial, transition, emission)
    assert (states.diff() >= 0).all()
    assert log_probability.tolist() == [-1.0]


@pytest.mark.parametrize(
    ("initial", "transition", "emission", "match"),
    [
        ((2,), (2, 2), (1, 0, 2), r"emission has shape \(1, 0, 2\); expected \[B, T, S\]"),
        ((2,), (2, 2), (3, 2), r"emission has shape \(3, 2\); expected \[B, T, S\]"),
        ((3,), (2, 2), (1, 4, 2), r"initial has shape \(3,\) .* expected \[2\] and \[2, 2\]"),
        ((2,), (2, 3), (1, 4, 2), r"transition \(2, 3\); expected \[2\] and \[2, 2\]"),
    ],
    ids=["no-time", "no-batch", "initial", "transition"],
)
def test_a_model_that_does_not_fit_is_refused(initial, transition, emission, match):
    with pytest.raises(ValueError, match=match):
        viterbi.viterbi(torch.zeros(initial), torch.zeros(transition), torch.zeros(emission))


def test_an_impossible_sequence_is_named():
    emission = torch.zeros(3, 4, 2)
    emission[1, 2] = -INF
    with pytest.raises(ValueError, match="no states explain sequence 1"):
        viterbi.viterbi(torch.zeros(2), torch.zeros(2, 2), emission)


# ------------------------------------------------------------------------------------------------ edge detector


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (11, 6)], ids=str)
def test_dilation_and_erosion_equal_scipys(shape, size):
    image, structure = torch.rand(shape, dtype=torch.float64), torch.rand(size, dtype=torch.float64)
    mirrored = structure.flip(0, 1).numpy()  # SciPy's dilation looks at p − k
    dilated = ndimage.grey_dilation(image.numpy(), structure=mirrored, mode="constant", cval=-INF)
    eroded = ndimage.grey_erosion(image.numpy(), structure=structure.numpy(), mode="constant", cval=INF)
    np.testing.assert_array_equal(edge_detector.dilation(image, structure).numpy(), dilated)
    np.testing.assert_array_equal(edge_detector.erosion(image, structure).numpy(), eroded)


def test_a_step_gives_one_edge_and_a_plain_image_none():
    structure = edge_detector.paraboloid(radius=1, steepness=0.0)
    image = torch.zeros(5, 8, dtype=torch.float64)
    assert not edge_detector.edges(image, structure).any()
    image[:, 4:] = 1
    assert edge_detector.edges(image, structure).tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]] * 5


def test_closing_never_darkens():
    """Eroding what was dilated, with the mirrored window, gives the image back or more: the two are adjoint."""
    structure = torch.randint(-2, 3, (3, 5)).double()
    image = torch.randint(0, 9, (6, 7)).double()
    closed = edge_detector.erosion(edge_detector.dilation(image, structure), structure.flip(0, 1))
    assert (closed >= image).all()


@pytest.mark.parametrize(
    ("image", "structure", "match"),
    [
        ((0, 4), (3, 3), r"image has shape \(0, 4\); expected \[H, W\] with pixels in it"),
        ((2, 4, 4), (3, 3), r"image has shape \(2, 4, 4\); expected \[H, W\]"),
        ((4, 4), (2, 3), r"structure has shape \(2, 3\); expected \[h, w\], both odd"),
        ((4, 4), (3,), r"structure has shape \(3,\); expected \[h, w\], both odd"),
    ],
    ids=["empty", "stack", "even", "vector"],
)
def test_no_image_or_window_is_refused(image, structure, match):
    with pytest.raises(ValueError, match=match):
        edge_detector.edges(torch.zeros(image), torch.zeros(structure))


# ------------------------------------------------------------------------------------------------ annealing


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_the_smooth_product_lies_at_most_t_log_k_above_the_maximum(temperature):
    x, w = torch.randn(40, 7, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    above = annealing.soft_product(x, w, temperature) - annealing.soft_product(x, w, 0)
    assert (above >= -1e-12).all()
    assert (above <= temperature * math.log(7) + 1e-12).all()


def test_the_temperature_falls_geometrically_and_then_is_zero():
    schedule = annealing.falling(0.4, 0.1, share=0.5)
    np.testing.assert_allclose([schedule(done) for done in (0, 0.25, 0.499999)], [0.4, 0.2, 0.1], rtol=1e-4)
    assert schedule(0.5) == schedule(1) == 0


@pytest.mark.parametrize("arguments", [(0.1, 0.2), (0.1, 0), (math.inf, 0.1), (0.2, 0.1, 0), (0.2, 0.1, 1.5)], ids=str)
def test_a_schedule_that_does_not_fall_is_refused(arguments):
    with pytest.raises(ValueError, match="falling: start is"):
        annealing.falling(*arguments)


def test_annealing_learns_what_the_maximum_alone_does_not():
    x, y, start = annealing.problem(0, samples=256, inputs=16, outputs=4)
    hard, annealed = (
        annealing.fit(x, y, start, schedule, steps=150)[1][-1]
        for schedule in (lambda _: 0.0, annealing.falling(0.3, 0.01))
    )
    assert annealed < hard / 5


# ------------------------------------------------------------------------------------------------ as programs


@pytest.mark.parametrize(
    "program",
    ["shortest_paths", "viterbi", "edge_detector", pytest.param("annealing --seeds 1", marks=pytest.mark.slow)],
)
def test_it_runs_and_draws(program, tmp_path):
    name, *options = program.split()
    out = tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", *options, "--out", out], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
