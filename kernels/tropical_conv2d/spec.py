"""The tropical convolution as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ...autotune import Problem
from ..contract.registry import register
from ..contract.spec import Contender, Extra, Misuse, Sample, Scaling, Sizes, Spec
from ..contract.workloads import Function, Prepare, called, rivals, standard, trained
from ..runtime.arguments import FLOATS, INTEGERS
from . import _FORWARDS, by_cpp, by_triton, tropical_conv2d, tropical_conv2d_ref
from .definition import SEMIRINGS, Window

NAN, INF = float("nan"), float("inf")


def oracle(
    x, weight, *, semiring="max_plus", stride=1, padding=0, dilation=1, groups=1, return_indices=False, nan="propagate"
):
    """The definition with the public function's signature."""
    window = Window(*(n if isinstance(n, tuple) else (n, n) for n in (stride, padding, dilation)))
    images = x if x.dim() == 4 else x.unsqueeze(0)
    results = tropical_conv2d_ref(images, weight, window, groups, semiring=semiring, nan=nan)
    values, winners = (y.view(*x.shape[:-3], *y.shape[1:]) for y in results)
    return (values, winners) if return_indices else values


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal x [N, G · C, H, W] and weight [G · O, C, k, k]; integers from ±1000, or all of int8.

    Where the shape does not say, there is one image, one group of two channels and two filters, and a window 2 × 2.
    """
    generator = torch.Generator().manual_seed(seed)
    N, G, C, O, H, W, k = _letters(shape)
    sizes = (N, G * C, H, W), (G * O, C, k, k)
    if dtype.is_floating_point:
        x, weight = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    else:
        bound = min(1000, torch.iinfo(dtype).max)
        x, weight = (torch.randint(-bound, bound, size, generator=generator) for size in sizes)
    return x.to(device, dtype), weight.to(device, dtype)


def _letters(shape: Sizes) -> tuple[int, ...]:
    """N, G, C, O, H, W and k."""
    whole = {"N": 1, "G": 1, "C": 2, "O": 2, "k": 2, **shape}
    return tuple(whole[letter] for letter in "NGCOHWk")


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """One image of about as many outputs, with a window 3 × 3 where K allows one; for the scatter a filter an image."""
    outputs, K = int(problem["outputs"]), int(problem.get("K", 9))
    k, filters = 1 if K % 9 else 3, int(problem.get("filters", problem.get("images", 1)))
    height = 1 << (outputs - 1).bit_length() // 2
    size = {"H": height + k - 1, "W": -(-outputs // height) + k - 1, "C": K // k**2, "O": filters, "k": k}
    return inputs(size, dtype, device, 0)


# ------------------------------------------------------------------------------------------------ contenders
# All pad by half the window, and find the groups in the shapes.


def _steps(shape: Sizes) -> int:
    N, G, C, O, H, W, k = _letters(shape)
    return N * G * O * H * W * C * k**2


def _like(x: Tensor, weight: Tensor) -> dict:
    return {"padding": (weight.shape[2] // 2, weight.shape[3] // 2), "groups": x.shape[1] // weight.shape[1]}


def _ours(x: Tensor, weight: Tensor, **options):
    return tropical_conv2d(x, weight, **_like(x, weight), **options)


def _conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(x, weight, **_like(x, weight))


def _candidates(x: Tensor, weight: Tensor) -> Tensor:
    """Every candidate: [N, G, O, K, P · Q]."""
    kh, kw = weight.shape[2:]
    groups = x.shape[1] // weight.shape[1]
    padded = functional.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2), value=-INF)
    seen = functional.unfold(padded, (kh, kw)).unflatten(1, (groups, 1, -1))
    return seen + weight.reshape(groups, weight.shape[0] // groups, -1, 1)


def _output(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """[N, G · O, P, Q]."""
    sides = (n + 2 * (k // 2) - k + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return x.shape[0], weight.shape[0], *sides


def _laid_out(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Reshapes [N, G, O, P · Q] of these images, or of some of them, to [N, G · O, P, Q]."""
    return y.flatten(1, 2).unflatten(-1, _output(x, weight)[2:])


def _dense(x: Tensor, weight: Tensor) -> Tensor:
    return _laid_out(_candidates(x, weight).amax(3), x, weight)


def _dense_of_one_winner(x: Tensor, weight: Tensor) -> Tensor:
    return _laid_out(_candidates(x, weight).max(3).values, x, weight)  # amax shares its gradient among ties


_CANDIDATES_AT_A_TIME = 1 << 26  # 256 MiB in fp32: smaller problems are materialised whole


def _chunks(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, _CANDIDATES_AT_A_TIME // max(1, x[0, 0].numel() * weight.numel())))


def _in_chunks(convolution: Callable[[Tensor, Tensor], Tensor]):
    return lambda x, weight: torch.cat([convolution(images, weight) for images in _chunks(x, weight)])


def _dense_with_winners(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    parts = [_candidates(images, weight).max(3) for images in _chunks(x, weight)]
    return tuple(_laid_out(torch.cat(y), x, weight) for y in zip(*parts, strict=True))


def _trained(convolution: Function) -> Prepare:
    return trained(convolution, _output)


WORKLOADS = standard(
    "conv2d",
    _ours,
    inputs,
    _output,
    _steps,
    "add_max",
    forward=(
        *rivals(_dense, called, eager=_in_chunks(_dense)),
        Contender("torch.conv2d", "scale", called(_conv2d)),
    ),
    winners=(Contender("dense eager", "dense", called(_dense_with_winners)),),
    training=(
        *rivals(_dense_of_one_winner, _trained, "dense autograd", _in_chunks(_dense_of_one_winner)),
        Contender("torch.conv2d", "scale", _trained(_conv2d)),
    ),
    saves_winners=True,
)

# ------------------------------------------------------------------------------------------------ samples


def samples(device: torch.device) -> list[Sample]:
    """Where implementations go wrong: ties, NaN, infinities, saturation, the edge of the image, strides, groups."""
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = []

    def add(id: str, x: Tensor, weight: Tensor, **kwargs) -> None:
        samples.append(Sample(id, (x.to(device), weight.to(device)), kwargs))

    def small(*size: int) -> Tensor:
        return torch.randint(-2, 3, size, generator=generator).float()

    windows = {
        "same": {"padding": 1},
        "strided": {"stride": 2, "padding": (1, 0)},
        "dilated": {"dilation": (2, 1), "padding": (2, 1), "stride": (1, 3)},
    }
    messy_x, messy_weight = small(1, 4, 7, 11), small(6, 2, 3, 2)
    for x in (messy_x, messy_weight):
        where = torch.randperm(x.numel(), generator=generator)[: x.numel() // 12 * 3]
        x.view(-1)[where] = torch.tensor([NAN, INF, -INF]).repeat_interleave(x.numel() // 12)
    messy_x[0, :2, :3], messy_weight[0] = -INF, NAN
    for semiring in SEMIRINGS:
        zero = INF if semiring == "min_plus" else -INF
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for nan in ("propagate", "ignore"):
                for name, window in windows.items() if dtype == torch.float32 else [("same", windows["same"])]:
                    label = f"messy-{name}-{semiring}-{str(dtype).removeprefix('torch.')}-{nan}"
                    kwargs = {"semiring": semiring, "nan": nan, "groups": 2, **window}
                    add(label, messy_x.to(dtype), messy_weight.to(dtype), **kwargs)
        for name, window in windows.items():
            add(f"ties-{name}-{semiring}", small(2, 3, 6, 9), small(5, 3, 3, 2), semiring=semiring, **window)
        for dtype in INTEGERS:
            bounds = torch.iinfo(dtype)
            x, weight = (
                torch.randint(bounds.min, bounds.max + 1, size, generator=generator).to(dtype)
                for size in ((1, 2, 5, 8), (3, 2, 3, 2))
            )
            label = f"{semiring}-{str(dtype).removeprefix('torch.')}"
            add(f"saturating-{label}", x, weight, semiring=semiring, padding=1)
            add(f"ties-{label}", small(1, 2, 5, 8).to(dtype), small(3, 2, 3, 2).to(dtype), semiring=semiring, padding=1)
            add(f"blind-{label}", x[..., :1, :], weight[..., :2, :], semiring=semiring, padding=(1, 0), dilation=2)
        for dtype in (torch.float16, torch.bfloat16):  # sums that must be rounded before they are compared
            x, weight = (torch.randn(size, generator=generator).to(dtype) for size in ((1, 5, 6, 9), (3, 5, 3, 3)))
            add(f"rounding-{semiring}-{str(dtype).removeprefix('torch.')}", x * 30, weight, semiring=semiring)
        add(f"depthwise-{semiring}", small(1, 3, 6, 21), small(3, 1, 3, 3), semiring=semiring, groups=3, padding=1)
        add(f"unbatched-{semiring}", small(3, 6, 9), small(5, 3, 3, 2), semiring=semiring, padding=1)
        # windows that see nothing but padding, infinite weights over it, and images of nothing but the zero
        add(f"blind-{semiring}", small(1, 2, 1, 4), small(2, 2, 2, 2), semiring=semiring, padding=(1, 0), dilation=2)
        add(
            f"infinite-weight-{semiring}",
            small(1, 1, 4, 5),
            torch.full((2, 1, 3, 3), -zero),
            padding=2,
            semiring=semiring,
        )
        add(f"all-lost-{semiring}", torch.full((1, 2, 4, 5), zero), small(2, 2, 3, 3), semiring=semiring, padding=1)
        for id, x, weight in (
            ("no-batch", (0, 2, 4, 5), (3, 2, 3, 3)),
            ("no-channels", (2, 0, 4, 5), (3, 0, 3, 3)),
            ("no-filters", (2, 2, 4, 5), (0, 2, 3, 3)),
            ("no-rows", (2, 2, 0, 5), (3, 2, 3, 3)),
            ("one-pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
        ):
            pad = min(weight[2] - 1, 2)
            add(f"edge-{id}-{semiring}", torch.zeros(x), torch.zeros(weight), semiring=semiring, padding=pad)
    return samples


def misuses(device: torch.device) -> list[Misuse]:
    x, weight = torch.zeros(2, 4, 5, 6, device=device), torch.zeros(6, 4, 3, 3, device=device)

    def bad(id: str, match: str, *args, error: type[Exception] = ValueError, **kwargs) -> Misuse:
        return Misuse(id, lambda: tropical_conv2d(*args, **kwargs), error, match)

    return [
        bad("rank", r"x has shape \(5, 6\); expected \[B, C, H, W\] or \[C, H, W\]", x[0, 0], weight),
        bad("weight-rank", r"weight has shape \(4, 3, 3\); expected \[O, C / groups, kh, kw\]", x, weight[0]),
        bad("no-taps", "kh and kw at least 1", x, weight[:, :, :0]),
        bad("channels", r"weight has shape \(6, 3, 3, 3\); expected \[O, 4, kh, kw\], for", x, weight[:, :3]),
        bad("grouped-channels", r"expected \[O, 2, kh, kw\], for x's 4 channels in 2 groups", x, weight, groups=2),
        bad("groups", "groups is 4; expected a divisor of x's 4 channels and of weight's 6", x, weight, groups=4),
        bad("no-groups", "groups is 0; expected a divisor", x, weight, groups=0),
        bad("stride", "stride is 0; expected an int or a pair of ints, at least 1", x, weight, stride=0),
        bad("dilation", r"dilation is \(1, 0\); expected an int or a pair", x, weight, dilation=(1, 0)),
        bad("triple", r"stride is \(1, 1, 1\); expected an int or a pair", x, weight, stride=(1, 1, 1)),
        bad("negative-padding", "padding is -1; expected an int or a pair of ints, at least 0", x, weight, padding=-1),
        bad("padding", "padding is 3; expected less than the window's 3 × 3 pixels", x, weight, padding=3),
        bad("small-image", r"x has shape \(2, 4, 2, 6\); expected at least the window's 3 × 3", x[:, :, :2], weight),
        bad("dilated-too-far", "expected at least the window's 7 × 7 pixels", x, weight, dilation=3),
        bad("semiring", "semiring is 'max_times'; expected 'max_plus' or 'min_plus'", x, weight, semiring="max_times"),
        bad("nan", "nan is 'skip'; expected 'propagate' or 'ignore'", x, weight, nan="skip"),
    ]


def scattered(winners: Tensor) -> tuple[Tensor, ...]:
    """[2, 5, 7] winners of five filters 2 × 2 on two images of one channel."""
    winners = winners.unsqueeze(-1)
    dy = torch.arange(winners.numel(), dtype=torch.float32, device=winners.device).view_as(winners)
    window = (1, 1), (0, 0), (1, 1), 1
    return torch.ops.tropigrad.tropical_conv2d_scatter(dy, winners, (2, 1, 8, 2), (5, 1, 2, 2), *window, True, True)


SPEC = register(
    Spec(
        name="tropical_conv2d",
        op=tropical_conv2d,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "dense": {"N": 4, "G": 1, "C": 16, "O": 32, "H": 28, "W": 28, "k": 3},
            "depthwise": {"N": 4, "G": 64, "C": 1, "O": 1, "H": 56, "W": 56, "k": 5},
            "image": {"N": 1, "G": 1, "C": 1, "O": 1, "H": 512, "W": 512, "k": 5},
        },
        workloads=WORKLOADS,
        variants={"max_plus": {}, "min_plus-strided": {"semiring": "min_plus", "stride": 2, "padding": 1}},
        dtypes=(*FLOATS, *INTEGERS),
        small_shapes=({"H": 2, "W": 2}, {"H": 6, "W": 19, "C": 3, "O": 13}),
        samples=samples,
        particular_misuses=misuses,
        implementations=_FORWARDS,
        middle={"N": 3, "G": 1, "C": 5, "O": 7, "H": 60, "W": 61, "k": 3},
        interpreted={"N": 1, "G": 1, "C": 2, "O": 3, "H": 6, "W": 7, "k": 3},
        tuned={"cpp": (by_cpp.FORWARD, by_cpp.SCATTER), "triton": (by_triton.FORWARD, by_triton.SCATTER)},
        scalings=lambda kwargs: (Scaling((1, 1), 1),),
        aliased={
            "weight-of-x": lambda x: (x.view(1, 1, 6, 6), x[:3, :3].view(1, 1, 3, 3)),
            "mirrored": lambda x: (x.view(1, 1, 6, 6), x.mT[None, None, 1:4, 1:4]),
            "channels": lambda x: (x.view(1, 2, 3, 6), x.view(2, 2, 3, 3)[:1]),
        },
        extra=Extra(
            scatter=(scattered, 4), inputs_at=inputs_at, options_at=lambda shape: {"groups": shape.get("G", 1)}
        ),
    )
)
