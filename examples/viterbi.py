"""Viterbi decoding: the likeliest hidden states behind noisy observations, by max-plus products.

The best log-probability of any history of states that ends in state j at time t is

    score[t, j] = emission[t, j] + max_i score[t − 1, i] + transition[i, j]

one max-plus product a time step, for a whole batch of sequences at once; the winners i lead back from the best end.
Checked against a plain dynamic programme.

    python examples/viterbi.py [--out viterbi.png]
"""

import argparse

import numpy as np
import torch
from torch import Tensor

from tropigrad.kernels import tropical_matmul
from tropigrad.perf_reports.page.figures import COLOR, drawing


def viterbi(initial: Tensor, transition: Tensor, emission: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest states [B, T], and their joint log-probabilities with the observations [B].

    initial: [S], transition: [S, S] (from, to), emission: [B, T, S]: log-probabilities, of what was seen at t for the
    last; −∞ for the impossible.
    """
    if emission.dim() != 3 or 0 in emission.shape[1:]:
        raise ValueError(f"viterbi: emission has shape {tuple(emission.shape)}; expected [B, T, S], T and S positive")
    times, states = emission.shape[1:]
    if initial.shape != (states,) or transition.shape != (states, states):
        raise ValueError(
            f"viterbi: initial has shape {tuple(initial.shape)} and transition {tuple(transition.shape)}; "
            f"expected [{states}] and [{states}, {states}], to follow emission's {tuple(emission.shape)}"
        )
    score = initial + emission[:, 0]
    winners = []
    for t in range(1, times):
        best, winner = tropical_matmul(score, transition, return_indices=True)
        score = best + emission[:, t]
        winners.append(winner)
    log_probability, state = score.max(-1)
    impossible = (~log_probability.isfinite()).nonzero().flatten().tolist()
    if impossible:
        raise ValueError(f"viterbi: no states explain sequence {impossible[0]}; expected a finite log-probability")
    path = [state]
    for winner in reversed(winners):
        path.append(winner.gather(-1, path[-1].unsqueeze(-1)).squeeze(-1))
    return torch.stack(path[::-1], -1), log_probability


def plain_viterbi(initial: np.ndarray, transition: np.ndarray, emission: np.ndarray) -> tuple[list[int], float]:
    """The same for one sequence [T, S], state by state in Python."""
    states = range(len(initial))
    best = [(initial[j] + emission[0, j], [j]) for j in states]
    for seen in emission[1:]:
        best = [
            max(((score + transition[i, j] + seen[j], [*path, j]) for i, (score, path) in enumerate(best)))
            for j in states
        ]
    score, path = max(best)
    return path, score


def noisy_levels(sequences: int, times: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Four levels that rarely change, seen through noise: states [B, T], observations [B, T] and the model."""
    generator = torch.Generator().manual_seed(seed)
    levels, stay, noise = 4, 0.96, 0.75
    transition = torch.full((levels, levels), (1 - stay) / (levels - 1), dtype=torch.float64).fill_diagonal_(stay)
    initial = torch.full((levels,), 1 / levels, dtype=torch.float64)
    states = [initial.multinomial(sequences, replacement=True, generator=generator)]
    for _ in range(times - 1):
        states.append(transition[states[-1]].multinomial(1, generator=generator).squeeze(-1))
    hidden = torch.stack(states, -1)
    seen = hidden + noise * torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
    emission = torch.distributions.Normal(torch.arange(levels, dtype=torch.float64), noise).log_prob(seen.unsqueeze(-1))
    return hidden, seen, (initial.log(), transition.log(), emission)


def draw(hidden: Tensor, seen: Tensor, decoded: Tensor, out: str) -> None:
    right, guessed = ((states == hidden).double().mean() for states in (decoded, seen.round().clamp(0, 3)))
    with drawing(8, 4.4) as (figure, axes):
        axes.plot(seen, ".", color=COLOR["muted"], alpha=0.55, markersize=5, label="observed")
        axes.step(
            range(len(hidden)), hidden, where="mid", color=COLOR["compiled"], linewidth=6, alpha=0.45, label="hidden"
        )
        axes.step(range(len(hidden)), decoded, where="mid", color=COLOR["ours"], linewidth=1.6, label="decoded")
        axes.set(xlabel="time", ylabel="level", yticks=range(4), xlim=(0, len(hidden) - 1))
        axes.set_title(
            f"Decoded: {right:.0%} of the states are right; rounding each observation: {guessed:.0%}", pad=30
        )
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        figure.savefig(out, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="viterbi.png", help="the picture")
    out = parser.parse_args().out
    hidden, seen, model = noisy_levels(sequences=32, times=240)
    decoded, log_probability = viterbi(*model)
    initial, transition, emission = (x.numpy() for x in model)
    for b, sequence in enumerate(emission):
        path, score = plain_viterbi(initial, transition, sequence)
        assert decoded[b].tolist() == path
        np.testing.assert_allclose(log_probability[b], score, rtol=1e-12)
    print(f"{len(emission)} sequences agree with a plain dynamic programme; {out}")
    draw(hidden[0], seen[0], decoded[0], out)


if __name__ == "__main__":
    main()
