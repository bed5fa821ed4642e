"""From softmax to tropical: training a max-plus layer at a falling temperature.

The log semiring smooths the maximum,  T log Σ_k exp((x[k] + w[k]) / T)  in  [max_k x[k] + w[k], … + T log K],  and its
gradient is a softmax of the candidates, where that of the maximum goes to the winner alone. A weight that never wins
never learns: trained at T = 0, a max-plus layer stalls wherever its first winners leave it. Trained at a temperature
that falls to 0, every weight is told at first, then fewer and fewer, and what remains is the exact max-plus layer.

Here a layer learns from the outputs of another one. Its error is that of the max-plus layer, whatever T it trains at.

    python examples/annealing.py [--out annealing.png]
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from tropigrad.kernels import tropical_matmul
from tropigrad.perf_reports.page.figures import COLOR, drawing

Schedule = Callable[[float], float]  # of the share of the steps done, 0 to 1: the temperature; 0 for max-plus itself


def falling(start: float, end: float, share: float = 0.8) -> Schedule:
    """Geometrically from start to end over that share of the steps, and 0 for the rest."""
    if not 0 < end <= start < math.inf or not 0 < share <= 1:
        raise ValueError(
            f"falling: start is {start}, end {end}, share {share}; expected 0 < end ≤ start and 0 < share ≤ 1"
        )
    return lambda done: start * (end / start) ** (done / share) if done < share else 0.0


def soft_product(x: Tensor, w: Tensor, temperature: float) -> Tensor:
    """x [N, K], w [K, O] -> [N, O] in the log semiring, or in max-plus at temperature 0."""
    if temperature == 0:
        return tropical_matmul(x, w)
    return tropical_matmul(x, w, semiring="log", temperature=temperature)


def fit(x: Tensor, y: Tensor, w: Tensor, schedule: Schedule, steps: int = 400) -> tuple[Tensor, list[float]]:
    """Weights that give y [N, O] from x [N, K], trained from w [K, O]; and the max-plus layer's error at each step."""
    w = w.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    errors = []
    for step in range(steps):
        loss = (soft_product(x, w, schedule(step / steps)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        errors.append(error(x, y, w.detach()))
    return w.detach(), errors


def error(x: Tensor, y: Tensor, w: Tensor) -> float:
    """Mean squared error of the max-plus layer w."""
    return float((tropical_matmul(x, w) - y).square().mean())


def problem(seed: int, samples: int = 1024, inputs: int = 32, outputs: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [N, K], the outputs [N, O] of a max-plus layer, and weights to start from [K, O]; both layers U(−2, 2)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    teacher, start = torch.rand(2, inputs, outputs, generator=generator) * 4 - 2
    return x, tropical_matmul(x, teacher), start


SCHEDULES: dict[str, tuple[Schedule, str]] = {
    "max-plus throughout (T = 0)": (lambda done: 0.0, COLOR["dense"]),
    "smooth throughout (T = 0.3)": (lambda done: 0.3, COLOR["compiled"]),
    "annealed (T from 0.3 to 0.006, then 0)": (falling(0.3, 0.006), COLOR["ours"]),
}


def draw(curves: dict[str, Tensor], out: str) -> None:
    """The errors [seeds, steps] of each schedule: their median, and their range."""
    with drawing(8, 4.4) as (figure, axes):
        for name, errors in curves.items():
            color, steps = SCHEDULES[name][1], range(1, errors.shape[1] + 1)
            axes.fill_between(steps, errors.amin(0), errors.amax(0), color=color, alpha=0.18, linewidth=0)
            axes.plot(steps, errors.median(0).values, color=color, linewidth=1.8, label=name)
        axes.set(xlabel="step", ylabel="error of the max-plus layer", yscale="log", xlim=(0, None), ylim=(2e-6, 1))
        axes.set_title("A falling temperature lets every weight learn", pad=12)
        axes.grid(axis="y")
        axes.legend(loc="lower left")
        figure.savefig(out, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="annealing.png", help="the picture")
    parser.add_argument("--seeds", type=int, default=5, help="layers to learn")
    arguments = parser.parse_args()
    problems = [problem(seed) for seed in range(arguments.seeds)]
    x, _, start = problems[0]
    exact = torch.logsumexp((x[:, :, None] + start).double() / 0.3, 1) * 0.3
    torch.testing.assert_close(soft_product(x, start, 0.3).double(), exact, rtol=2e-5, atol=2e-5)
    curves = {
        name: torch.tensor([fit(*setup, schedule)[1] for setup in problems])
        for name, (schedule, _) in SCHEDULES.items()
    }
    for name, errors in curves.items():
        print(f"{name}: error {errors[:, -1].median():.2g} (median of {len(problems)})")
    draw(curves, arguments.out)


if __name__ == "__main__":
    main()
