"""All shortest paths of a road map, by squaring one matrix.

With D[i, j] the length of the road i → j (0 on the diagonal, ∞ where there is none), the min-plus product

    (D ⊗ D)[i, j] = min_k D[i, k] + D[k, j]

is the length of the shortest way of at most two roads; squared s times, of at most 2^s roads. The winners k of each
squaring are stops halfway, and lead back to the whole route. Checked against scipy.sparse.csgraph.

    python examples/shortest_paths.py [--out shortest-paths.png]
"""

import argparse
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csgraph
from scipy.spatial import Delaunay
from torch import Tensor

from tropigrad.kernels import tropical_matmul
from tropigrad.perf_reports.page.figures import COLOR, drawing

INF = float("inf")


def shortest_paths(lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Distances [N, N], and the winners [N, N] of each squaring, for `route`.

    lengths: [N, N] floats, of the road i → j; ∞ for no road. Negative lengths are allowed, negative cycles are not.
    """
    if lengths.dim() != 2 or lengths.shape[0] != lengths.shape[1]:
        raise ValueError(f"shortest_paths: lengths has shape {tuple(lengths.shape)}; expected [N, N]")
    if lengths.numel() == 0:
        raise ValueError("shortest_paths: lengths has shape (0, 0), an empty graph; expected at least one node")
    if (lengths.isnan() | (lengths == -INF)).any():
        raise ValueError("shortest_paths: lengths hold NaN or -inf; expected numbers, and inf for no road")
    nodes, winners = len(lengths), []
    distances = lengths.clone()
    distances.diagonal().clamp_(max=0)  # staying costs nothing
    _refuse_negative_cycle(distances, winners)
    for _ in range(nodes.bit_length()):  # 2^s ≥ N roads: any simple cycle has shown itself by then
        shorter, stops = tropical_matmul(distances, distances, semiring="min_plus", return_indices=True)
        if torch.equal(shorter, distances):
            break
        distances = shorter
        winners.append(stops)
        _refuse_negative_cycle(distances, winners)
    return distances, winners


def route(winners: list[Tensor], start: int, goal: int) -> list[int]:
    """The nodes from start to goal, which must be reachable: each squaring puts a stop between two neighbours."""
    stops = [start, goal]
    for winner in reversed(winners):
        halfway = [int(winner[i, j]) for i, j in pairwise(stops)]
        both = [node for pair in zip(stops, halfway, strict=False) for node in pair] + [goal]
        stops = both[:1] + [node for before, node in pairwise(both) if node != before]
    return stops


def _refuse_negative_cycle(distances: Tensor, winners: list[Tensor]) -> None:
    below = (distances.diagonal() < 0).nonzero().flatten().tolist()
    if below:
        cycle = " → ".join(map(str, route(winners, below[0], below[0])))
        raise ValueError(f"shortest_paths: lengths hold the negative cycle {cycle}; expected none, nothing is shortest")


def road_map(nodes: int, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """Towns [N, 2] in km, at random in a square around a lake, and the roads [N, N] between neighbours in metres.

    Whole metres: their sums are exact, so that every order of adding gives the same distance.
    """
    random = np.random.default_rng(seed)
    towns = random.uniform(-50, 50, (4 * nodes, 2))
    towns = towns[np.hypot(*(towns / [31, 21]).T) > 1][:nodes]
    lengths = torch.full((nodes, nodes), INF, dtype=torch.float64)
    for corners in Delaunay(towns).simplices:
        for i, j in zip(corners, np.roll(corners, 1), strict=True):
            kilometres = float(np.hypot(*(towns[i] - towns[j])))
            if kilometres < 200 / nodes**0.5:  # no road across the lake
                lengths[i, j] = lengths[j, i] = round(1000 * kilometres)
    return towns, lengths


def draw(towns: np.ndarray, lengths: Tensor, distances: Tensor, winners: list[Tensor], out: str) -> None:
    start, goal = (int(np.argmin(np.hypot(*(towns - corner).T))) for corner in ([-48, 5], [48, -8]))
    with drawing(8, 6.6) as (figure, axes):
        for i, j in lengths.isfinite().nonzero().tolist():
            axes.plot(*towns[[i, j]].T, color=COLOR["grid"], linewidth=0.9, zorder=1)
        dots = axes.scatter(*towns.T, c=distances[start].numpy() / 1000, cmap="cividis_r", s=16, zorder=2)
        way = route(winners, start, goal)
        axes.plot(*towns[way].T, color=COLOR["dense"], linewidth=2.6, zorder=3)
        axes.scatter(*towns[[start, goal]].T, s=90, color=COLOR["dense"], edgecolor=COLOR["paper"], zorder=4)
        figure.colorbar(
            dots, ax=axes, shrink=0.75, label="kilometres from the western end of the route"
        ).outline.set_visible(False)
        axes.set_title(f"{len(towns)} towns, all distances from {len(winners)} min-plus squarings")
        axes.set_aspect("equal")
        axes.axis("off")
        figure.savefig(out, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="shortest-paths.png", help="the picture")
    out = parser.parse_args().out
    towns, lengths = road_map(700)
    distances, winners = shortest_paths(lengths)
    expected = csgraph.shortest_path(lengths.numpy())
    np.testing.assert_array_equal(distances.numpy(), expected)
    print(f"{expected.size} distances equal SciPy's; {len(winners)} squarings; {out}")
    draw(towns, lengths, distances, winners, out)


if __name__ == "__main__":
    main()
