"""The tropical convolution as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...autotune import Problem
from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import INF, NAN, normal_inputs, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec
from ..contract.workloads import Function, Prepare, called, in_chunks, rivals, standard, trained
from ..runtime.arguments import FLOATS, INTEGERS
from . import _FORWARDS, by_cpp, by_triton, tropical_conv2d, tropical_conv2d_ref
from .definition import SEMIRINGS, Window


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
    N, G, C, O, H, W, k = _letters(shape)
    x, weight = normal_inputs(seed, dtype, device, (N, G * C, H, W), (G * O, C, k, k))
    return x, weight


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


def _with_winners(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return tuple(_laid_out(y, x, weight) for y in _candidates(x, weight).max(3))


def _count(x: Tensor, weight: Tensor) -> int:
    """Candidates of an image."""
    return x[0, 0].numel() * weight.numel()


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
        *rivals(_dense, called, eager=in_chunks(_dense, _count)),
        Contender("torch.conv2d", "scale", called(_conv2d)),
    ),
    winners=(Contender("dense eager", "dense", called(in_chunks(_with_winners, _count))),),
    training=(
        *rivals(_dense_of_one_winner, _trained, "dense autograd", in_chunks(_dense_of_one_winner, _count)),
        Contender("torch.conv2d", "scale", _trained(_conv2d)),
    ),
    saves_winners=True,
    dtypes=FLOATS,  # the definition pads with −∞, which no integer is
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Where implementations go wrong: ties, NaN, infinities, saturation, the edge of the image, strides, groups."""
    small = numbers.small
    windows = {
        "same": {"padding": 1},
        "strided": {"stride": 2, "padding": (1, 0)},
        "dilated": {"dilation": (2, 1), "padding": (2, 1), "stride": (1, 3)},
    }
    messy_x, messy_weight = small(1, 4, 7, 11), small(6, 2, 3, 2)
    for x in (messy_x, messy_weight):
        numbers.sprinkle(x, torch.tensor([NAN, INF, -INF]).repeat_interleave(x.numel() // 12))
    messy_x[0, :2, :3], messy_weight[0] = -INF, NAN
    for semiring in SEMIRINGS:
        of = {"semiring": semiring}
        zero = INF if semiring == "min_plus" else -INF
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for nan in ("propagate", "ignore"):
                for name, window in windows.items() if dtype == torch.float32 else [("same", windows["same"])]:
                    label = f"messy-{name}-{semiring}-{short(dtype)}-{nan}"
                    add(label, messy_x.to(dtype), messy_weight.to(dtype), **of, nan=nan, groups=2, **window)
        for name, window in windows.items():
            add(f"ties-{name}-{semiring}", small(2, 3, 6, 9), small(5, 3, 3, 2), **of, **window)
        for dtype in INTEGERS:
            x, weight = numbers.bounded(dtype, 1, 2, 5, 8), numbers.bounded(dtype, 3, 2, 3, 2)
            ties = small(1, 2, 5, 8, dtype=dtype), small(3, 2, 3, 2, dtype=dtype)
            label = f"{semiring}-{short(dtype)}"
            add(f"saturating-{label}", x, weight, **of, padding=1)
            add(f"ties-{label}", *ties, **of, padding=1)
            add(f"blind-{label}", x[..., :1, :], weight[..., :2, :], **of, padding=(1, 0), dilation=2)
        for dtype in (torch.float16, torch.bfloat16):  # sums that must be rounded before they are compared
            x, weight = numbers.normal(1, 5, 6, 9).to(dtype), numbers.normal(3, 5, 3, 3).to(dtype)
            add(f"rounding-{semiring}-{short(dtype)}", x * 30, weight, **of)
        add(f"depthwise-{semiring}", small(1, 3, 6, 21), small(3, 1, 3, 3), **of, groups=3, padding=1)
        add(f"unbatched-{semiring}", small(3, 6, 9), small(5, 3, 3, 2), **of, padding=1)
        # windows that see nothing but padding, infinite weights over it, and images of nothing but the zero
        infinite = torch.full((2, 1, 3, 3), -zero)
        add(f"blind-{semiring}", small(1, 2, 1, 4), small(2, 2, 2, 2), **of, padding=(1, 0), dilation=2)
        add(f"infinite-weight-{semiring}", small(1, 1, 4, 5), infinite, **of, padding=2)
        add(f"all-lost-{semiring}", torch.full((1, 2, 4, 5), zero), small(2, 2, 3, 3), **of, padding=1)
        for id, x, weight in (
            ("no-batch", (0, 2, 4, 5), (3, 2, 3, 3)),
            ("no-channels", (2, 0, 4, 5), (3, 0, 3, 3)),
            ("no-filters", (2, 2, 4, 5), (0, 2, 3, 3)),
            ("no-rows", (2, 2, 0, 5), (3, 2, 3, 3)),
            ("one-pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
        ):
            pad = min(weight[2] - 1, 2)
            add(f"edge-{id}-{semiring}", torch.zeros(x), torch.zeros(weight), **of, padding=pad)


def misuses(device: torch.device) -> list[Misuse]:
    x, weight = torch.zeros(2, 4, 5, 6, device=device), torch.zeros(6, 4, 3, 3, device=device)

    def bad(id: str, match: str, *args, **kwargs) -> Misuse:
        return misuse_of(tropical_conv2d)(id, ValueError, match, *args, **kwargs)

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
