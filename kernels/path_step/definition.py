"""A step of gradient descent on the values of paths, in torch: the definition of every kernel in this folder.

A chain is layers W_1 … W_L of a positively homogeneous network, with hidden nodes between them. Scaling the edges into
a hidden node by c > 0 and those out of it by 1/c changes nothing that the network computes; so the step is taken in
coordinates that such scalings leave alone. Each hidden node j has one skeleton edge into it and one out of it. Followed
to the ends of the chain they have the products P(j), the prefix, and S(j), the suffix; beyond the ends P = S = 1. Of an
edge e = (i, j) and a bias b of j, and with V constant along a run of nodes that skeleton edges join both ways:

    ψ_e = P(i) S(j)     u_e = ψ_e w_e     u_b = S(j) b     V_k = P(j) S(j), j any node of run k

The u of the edges off the skeleton and the V are the values of m − H independent paths: as many as the path matrix of m
weights and H hidden nodes has rank, whatever the widths. With g = ∂L/∂w, and node balance for T_j,

    ∂L/∂u_e = g_e / ψ_e     V_k ∂L/∂V_k = Σ_{skeleton edges of run k} w_e g_e − Σ_{j in run k} T_j
    T_j = Σ_{edges into j, its bias too} w_e g_e = Σ_{edges out of j} w_e g_e

A step of SGD takes u to u', V_k to R_k V_k. Weights with these values are found by H free choices: the suffix of the
nodes behind layer s, and the prefix of those before it, keep what they are. With p_j R_j⁻¹ = q_j = 1 behind layer s and
p_j = q_j R_j⁻¹ = 1 before it, and p = q = 1 at the ends of the chain,

    off the skeleton  w_e ← (u'_e / ψ_e) / (p_i q_j)       on it, of run k  w_e ← w_e R_k / (p_i q_j)

which leaves the skeleton outside layer s bit for bit as it was wherever the widths have one maximum, and s is there.

Paths with two edges off the skeleton have values u_e u_f / V, so a skeleton whose V are small, as torch's default
initialisation draws it, is no measure. Then a chain can be measured by the norms of all its paths instead. With A_j
the sum over the paths from the inputs to node j, of layer l, of their squared values (Σ w² A_i + b² over edges into j,
A = 1 at the inputs), and Γ the mean of A over the outputs, the step is that of SGD in the one scaling of the nodes in
which the A of each hidden node is Γ^(l/L), as is their mean in layer l where each layer shrinks A alike:

    c_j² = Γ^(l/L) / A_j     c = 1 at the ends     w_e ← w_e − η g_e (c_i / c_j)²     b ← b − η g_b / c_j²

All edges move so, those of the skeleton too. No scaling of the nodes changes this step either.

A weight, or a momentum, whose new value would not be finite keeps the one it has. So does a whole chain where a V is 0
or not finite or an R is not finite, for then nothing on it has a path value.

Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019
(basis paths, skeleton, inverse chain rule and weight allocation at skeleton = 1); the general form is our own. The
norms of paths: Neyshabur, Salakhutdinov & Srebro, "Path-SGD: Path-Normalized Optimization in Deep Neural Networks",
NeurIPS 2015.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime import capture


class Shape(NamedTuple):
    """A layer's weight as edges [G, O, I, T]: groups, nodes out and in of each, and taps between two nodes."""

    groups: int
    outputs: int
    inputs: int
    taps: int

    @property
    def sources(self) -> int:
        return self.groups * self.inputs

    @property
    def targets(self) -> int:
        return self.groups * self.outputs

    def into(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The skeleton edge into each target: the source, and where the edge lies in the flattened weight."""
        target = torch.arange(self.targets, device=device)
        source = target % self.outputs % self.inputs
        edge = (target * self.inputs + source) * self.taps + self.taps // 2
        return target // self.outputs * self.inputs + source, edge

    def out_of(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The skeleton edge out of each source: the target, and where the edge lies in the flattened weight."""
        source = torch.arange(self.sources, device=device)
        target = source // self.inputs * self.outputs + source % self.inputs % self.outputs
        return target, (target * self.inputs + source % self.inputs) * self.taps + self.taps // 2


@functools.cache
def problem_of(shapes: tuple[Shape, ...], dtype: torch.dtype) -> dict[str, int | str]:
    """The problem that the configs of the kernels depend on."""
    widest = max(shape.targets for shape in shapes[:-1])
    sizes = {"M": widest, "N": shapes[0].sources, "K": shapes[-1].targets, "layers": len(shapes)}
    return {**sizes, "edges": sum(math.prod(shape) for shape in shapes), "dtype": str(dtype)}


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The skeleton of a chain; everything here is by hidden layer, h = 0 between W_1 and W_2, as int64 indices."""

    shapes: tuple[Shape, ...]
    source: tuple[Tensor, ...]  # of the edge into each node: in hidden layer h − 1, or among the inputs
    edge_in: tuple[Tensor, ...]  # its place in the weight before the nodes
    target: tuple[Tensor, ...]  # of the edge out of each node: in hidden layer h + 1, or among the outputs
    edge_out: tuple[Tensor, ...]  # its place in the weight behind the nodes
    ends_run: tuple[Tensor, ...]  # the nodes whose edge out is no edge in: the last of their runs
    run: Tensor  # [H], of each hidden node, layer after layer
    first: Tensor  # [runs], the first node of each
    special: int  # s, counted from 0: the layer before the first of the widest hidden layers
    reduced: tuple[bool, ...]  # the layers of which T takes sums: of each two neighbours one, the fewest weights in all

    @property
    def runs(self) -> int:
        return len(self.first)

    @property
    def widths(self) -> list[int]:
        return [shape.targets for shape in self.shapes[:-1]]

    @property
    def hidden(self) -> int:
        return sum(self.widths)


def skeleton(shapes: tuple[Shape, ...], device: torch.device) -> Skeleton:
    """The skeleton of a chain's layers: edges (o, o mod I) into nodes and (i mod O, i) out of them, at centre taps."""
    return capture.kept(_skeleton(shapes, device), device)


@functools.lru_cache(1 << 8)
def _skeleton(shapes: tuple[Shape, ...], device: torch.device) -> Skeleton:
    into = [shape.into(device) for shape in shapes[:-1]]
    out_of = [shape.out_of(device) for shape in shapes[1:]]
    ends = []
    run = [torch.arange(shapes[0].targets, device=device)] if into else []
    total = shapes[0].targets if into else 0
    for (source, edge), (_, edge_before) in zip(into[1:], out_of, strict=False):
        joined = edge_before[source] == edge
        before = torch.ones_like(edge_before, dtype=torch.bool)
        before[source[joined]] = False
        ends.append(before.nonzero().squeeze(1))
        runs = run[-1][source]
        runs[~joined] = torch.arange(total, total + int((~joined).sum()), device=device)
        total += int((~joined).sum())
        run.append(runs)
    ends += [torch.arange(shapes[-1].sources, device=device)] if into else []
    every = torch.cat(run) if run else torch.zeros(0, dtype=torch.int64, device=device)
    first = torch.full((total,), len(every), device=device)
    first.scatter_reduce_(0, every, torch.arange(len(every), device=device), "amin")
    widths = [shape.targets for shape in shapes[:-1]]
    return Skeleton(
        shapes,
        tuple(source for source, _ in into),
        tuple(edge for _, edge in into),
        tuple(target for target, _ in out_of),
        tuple(edge for _, edge in out_of),
        tuple(ends),
        every,
        first,
        widths.index(max(widths)) if widths else 0,
        _cover(shapes),
    )


def _cover(shapes: Sequence[Shape]) -> tuple[bool, ...]:
    """Chooses one layer at least of each two neighbours, with the fewest weights, by dynamic programming."""
    sizes = [shape.targets * shape.inputs * shape.taps for shape in shapes]
    without, taken = (0, (False,)), (sizes[0], (True,))
    for size in sizes[1:]:
        cheaper = min(without, taken)
        without, taken = (taken[0], (*taken[1], False)), (cheaper[0] + size, (*cheaper[1], True))
    return min(without, taken)[1]


def prefixes(edges_in: Sequence[Tensor], source: Sequence[Tensor]) -> list[Tensor]:
    """P of every hidden layer, from the skeleton weights into it."""
    found: list[Tensor] = []
    for weights, before in zip(edges_in, source, strict=True):
        found.append(weights * found[-1][before] if found else weights)
    return found


def suffixes(edges_out: Sequence[Tensor], target: Sequence[Tensor]) -> list[Tensor]:
    """S of every hidden layer, from the skeleton weights out of it."""
    return prefixes(edges_out[::-1], target[::-1])[::-1]


class Layer(NamedTuple):
    """A layer of a chain: weight and gradient, G · O · I · T in this order, bias and gradient [G · O], momenta of u."""

    weight: Tensor
    grad: Tensor
    bias: Tensor | None = None
    bias_grad: Tensor | None = None
    momentum: Tensor | None = None
    bias_momentum: Tensor | None = None


class Options(NamedTuple):
    """Options of one step. R is clamped from below at `least_ratio`, and so that |V| ≥ `floor`.

    norms: path norms measure, not the skeleton.
    """

    lr: float | Tensor
    momentum: float = 0.0
    weight_decay: float = 0.0
    least_ratio: float = 0.5
    floor: float = 0.1
    norms: bool = False


def node_flows(layers: Sequence[Layer], shapes: Sequence[Shape], reduced: Sequence[bool]) -> list[Tensor]:
    """T of every hidden layer, from the edges in or those out, whichever layer is among the `reduced`."""
    flows: dict[int, Tensor] = {}
    for number, (weight, grad, bias, bias_grad, *_) in enumerate(layers):
        if reduced[number]:
            through = weight.reshape(shapes[number]) * grad.reshape(shapes[number])
            flows.setdefault(number - 1, through.sum((1, 3)).flatten())
            flows[number] = through.sum((2, 3)).flatten()
            if bias is not None and bias_grad is not None:
                flows[number] += bias * bias_grad
    return [flows[h] for h in range(len(layers) - 1)]


class Ends(NamedTuple):
    """The products at the ends of a layer's edges: P and p of its sources [G · I], S and q of its targets [G · O]."""

    prefix: Tensor
    p: Tensor
    suffix: Tensor
    q: Tensor


def velocity(x: Tensor, slope: Tensor, momentum: Tensor | None, options: Options) -> Tensor:
    """m' = μ m + ∂L/∂x + λ x, or without the first where there is no momentum."""
    slope = slope + options.weight_decay * x
    return slope if momentum is None else momentum * options.momentum + slope


def settle(x: Tensor, new: Tensor, momentum: Tensor | None, velocity: Tensor, kept: Tensor) -> None:
    """x ← new and m ← m', in place, wherever new is finite; how often it is not is added to `kept`, int64 []."""
    if x.is_cpu and math.isfinite(new.sum()):  # a look at one number, where that waits for nothing
        x.copy_(new)
        if momentum is not None:
            momentum.copy_(velocity)
        return
    finite = new.isfinite()
    x.copy_(torch.where(finite, new, x))
    if momentum is not None:
        momentum.copy_(torch.where(finite, velocity, momentum))
    kept.add_((~finite).sum())


def move(
    layers: Sequence[Layer], shapes: Sequence[Shape], ends: Sequence[Ends], options: Options, kept: Tensor
) -> None:
    """The weights of all layers, in place, as if none were on the skeleton; those not moved are counted in `kept`."""
    for layer, shape, (prefix, p, suffix, q) in zip(layers, shapes, ends, strict=True):
        G, O, I, _ = shape
        weight, grad = layer.weight.view(shape), layer.grad.reshape(shape)
        momentum = None if layer.momentum is None else layer.momentum.view(shape)
        ψ = prefix.view(G, 1, I, 1) * suffix.view(G, O, 1, 1)
        m = velocity(ψ * weight, grad / ψ, momentum, options)
        new = (weight - options.lr * (m / ψ)) / (p.view(G, 1, I, 1) * q.view(G, O, 1, 1))
        settle(weight, new, momentum, m, kept)


def _move_biases(layers: Sequence[Layer], ends: Sequence[Ends], options: Options, kept: Tensor) -> None:
    for layer, (_, _, S, q) in zip(layers, ends, strict=True):
        if layer.bias is not None and layer.bias_grad is not None:
            m = velocity(S * layer.bias, layer.bias_grad / S, layer.bias_momentum, options)
            settle(layer.bias, (layer.bias - options.lr * (m / S)) / q, layer.bias_momentum, m, kept)


def evening(layers: Sequence[Layer], shapes: Sequence[Shape]) -> list[Tensor]:
    """c of every hidden layer, [G · O] each: what scales its nodes so that their path norms are even.

    A is kept at a mean of 1 from layer to layer, and the logarithms of what it was divided by are summed: products over
    many layers leave the range of numbers. A node that no path reaches counts as one of mean norm.
    """
    A = layers[0].weight.new_ones(shapes[0].sources, dtype=torch.float64)
    logs, found = [A.new_zeros(())], []
    for layer, shape in zip(layers, shapes, strict=True):
        squares = layer.weight.view(shape).square().sum(3)
        squares = squares * A.to(layer.weight.dtype).view(shape.groups, 1, shape.inputs)
        A = squares.sum(2).flatten().double()
        if layer.bias is not None and len(found) < len(layers) - 1:
            A = A + layer.bias.double().square() * logs[-1].neg().exp()
        logs.append(logs[-1] + A.mean().log())
        A = A / A.mean()
        A = torch.where(A == 0, 1.0, A)
        found.append(A)
    L, dtype = len(layers), layers[0].weight.dtype
    return [((logs[-1] * l / L - logs[l]).exp() / A).sqrt().to(dtype) for l, A in enumerate(found[:-1], 1)]


def _step_by_norms(
    layers: Sequence[Layer], shapes: Sequence[Shape], options: Options, kept: Tensor, move: Callable[..., None]
) -> None:
    c = evening(layers, shapes)
    ends = [c[0].new_ones(n) for n in (shapes[0].sources, shapes[-1].targets)]
    prefix, suffix = [ends[0], *(1 / x for x in c)], [*c, ends[1]]
    of_layers = [Ends(P, torch.ones_like(P), S, torch.ones_like(S)) for P, S in zip(prefix, suffix, strict=True)]
    move(layers, shapes, of_layers, options, kept)
    _move_biases(layers, of_layers, options, kept)


def path_step_ref(
    layers: Sequence[Layer],
    bones: Skeleton,
    run_momentum: Tensor | None,
    events: Tensor,
    options: Options,
    node_flows: Callable[..., list[Tensor]] = node_flows,
    move: Callable[..., None] = move,
) -> None:
    """The step, in place, of all parameters, the momenta of `layers` and run_momentum [runs].

    To events, int64 [3], is added how many R the bounds held, how many of those were not positive, and how many weights
    kept their values because the new ones would not have been finite. A momentum is there for each parameter where
    options.momentum is not 0. node_flows and move are the two passes over the weights; everything else is as small as
    the layers are wide.
    """
    lr, _, _, least_ratio, floor, norms = options
    kept = events[2]
    if norms:
        _step_by_norms(layers, bones.shapes, options, kept, move)
        return
    edges = [layer.weight.view(-1) for layer in layers]
    through = [layer.grad.reshape(-1) for layer in layers]
    w_in = [edges[h][at] for h, at in enumerate(bones.edge_in)]
    w_out = [edges[h + 1][at] for h, at in enumerate(bones.edge_out)]
    prefix, suffix = prefixes(w_in, bones.source), suffixes(w_out, bones.target)

    own = [w * through[h][at] for h, (w, at) in enumerate(zip(w_in, bones.edge_in, strict=True))]
    for h, last in enumerate(bones.ends_run):
        own[h][last] += w_out[h][last] * through[h + 1][bones.edge_out[h][last]]
    surplus = torch.cat(own) - torch.cat(node_flows(layers, bones.shapes, bones.reduced))
    P, S = torch.cat(prefix), torch.cat(suffix)
    v = (P * S)[bones.first]
    slope = torch.zeros_like(v).index_add_(0, bones.run, surplus) / v
    m = velocity(v, slope, run_momentum, options)
    ratio = 1 - lr * m / v
    least = (floor / v.abs()).clamp(least_ratio, 1.0)
    is_sound = (v != 0).all() & ratio.isfinite().all() & v.isfinite().all()
    held = (ratio < least) & is_sound
    if run_momentum is not None:
        m = m.masked_fill(held, 0.0)  # at a wall it has come to rest
        run_momentum.copy_(torch.where(is_sound, m, run_momentum))
    nothing = torch.where(is_sound, 1.0, math.nan).to(v.dtype)  # NaN times what moves the chain: all of it is kept
    ratios = (torch.maximum(ratio, least) * nothing)[bones.run].split(bones.widths)

    ones = [x.new_ones(n) for x, n in ((v, bones.shapes[0].sources), (v, bones.shapes[-1].targets))]
    prefix, suffix = [ones[0], *prefix], [*(S * nothing).split(bones.widths), ones[1] * nothing]
    p = [ones[0], *(r if h >= bones.special else torch.ones_like(r) for h, r in enumerate(ratios))]
    q = [*(r if h < bones.special else torch.ones_like(r) for h, r in enumerate(ratios)), ones[1]]
    ends = [Ends(*four) for four in zip(prefix, p, suffix, q, strict=True)]
    move(layers, bones.shapes, ends, options, kept)
    _move_biases(layers, ends, options, kept)
    for number, edge in enumerate(edges):
        if number < len(layers) - 1:
            scale = ratios[number] / (p[number][bones.source[number]] * q[number])
            _place(edge, bones.edge_in[number], w_in[number], scale, kept, is_sound)
        if number > 0:
            last = bones.ends_run[number - 1]
            target = bones.target[number - 1][last]
            scale = ratios[number - 1][last] / (p[number][last] * q[number][target])
            _place(edge, bones.edge_out[number - 1][last], w_out[number - 1][last], scale, kept, is_sound)
    events[:2].add_(torch.stack((held.sum(), (held & (ratio <= 0)).sum())))


def _place(edge: Tensor, at: Tensor, w: Tensor, scale: Tensor, kept: Tensor, is_sound: Tensor) -> None:
    """w times scale on the skeleton's edges, or w where that is not finite; of an unsound chain `move` counted them."""
    new = w * scale
    finite = new.isfinite()
    edge[at] = torch.where(finite, new, w)
    kept.add_((~finite & is_sound).sum())
