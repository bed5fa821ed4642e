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

Layers need not follow one another: a node may be taken by several layers, and a layer may take nodes of several, beside
inputs (Wiring). Scaling a node then divides the edges out of it in all layers that take it. Its skeleton edge out lies
in the last of them, T_j sums the edges out in all, and everything above stays as it is, the count m − H too: with P
given by the H free choices, S = V / P, and P and S give back every weight. Of norms, l becomes the mean depth D of a
layer (1 + the mean D of its sources), and Γ^(l/L) is exp(D Σ log Γ_o / Σ D_o) over the layers o that end paths.

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
from itertools import accumulate
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

    @property
    def turned(self) -> Shape:
        """The same with sources for targets."""
        return Shape(self.groups, self.inputs, self.outputs, self.taps)

    def into(self, device: torch.device, turned: bool = False) -> tuple[Tensor, Tensor]:
        """The skeleton edge into each target: the source, and where the edge lies in the flattened weight.

        turned: the weight lies as [G, I, O, T].
        """
        target = torch.arange(self.targets, device=device)
        source = target // self.outputs * self.inputs + target % self.outputs % self.inputs
        return source, self._place(source, target, turned)

    def out_of(self, device: torch.device, turned: bool = False) -> tuple[Tensor, Tensor]:
        """The skeleton edge out of each source: the target, and where the edge lies in the flattened weight."""
        source = torch.arange(self.sources, device=device)
        target = source // self.inputs * self.outputs + source % self.inputs % self.outputs
        return target, self._place(source, target, turned)

    def _place(self, source: Tensor, target: Tensor, turned: bool) -> Tensor:
        row = source * self.outputs + target % self.outputs if turned else target * self.inputs + source % self.inputs
        return row * self.taps + self.taps // 2


class Wiring(NamedTuple):
    """The layers that each layer takes its nodes of, where they do not simply follow one another.

    sources: of each layer its parts, one behind the other: the number of the layer before it that makes them, or −1
        where they are ends of paths, and how many nodes they are. All the nodes of a layer that none takes are ends.
    turned: of each layer whether its weight lies as [G, I, O, T], as that of a transposed convolution does.
    """

    sources: tuple[tuple[tuple[int, int], ...], ...]
    turned: tuple[bool, ...]

    @staticmethod
    def of_chain(shapes: Sequence[Shape]) -> Wiring:
        return Wiring(tuple(((l - 1, shape.sources),) for l, shape in enumerate(shapes)), (False,) * len(shapes))

    def taken(self, layer: int) -> list[int]:
        """The layers that take the nodes of one."""
        return [l for l, parts in enumerate(self.sources) if any(made == layer for made, _ in parts)]


@functools.cache
def problem_of(shapes: tuple[Shape, ...], dtype: torch.dtype) -> dict[str, int | str]:
    """The problem that the configs of the kernels depend on."""
    widest = max(shape.targets for shape in shapes[:-1])
    sizes = {"M": widest, "N": shapes[0].sources, "K": shapes[-1].targets, "layers": len(shapes)}
    return {**sizes, "edges": sum(math.prod(shape) for shape in shapes), "dtype": str(dtype)}


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The skeleton of some layers. Hidden nodes are numbered layer after layer, and H stands for any end of paths.

    What is a tuple of tensors is by hidden layer, h = 0 that of the first layer whose nodes another takes; int64.
    """

    shapes: tuple[Shape, ...]
    wiring: Wiring
    nodes: tuple[Tensor, ...]  # of each layer: the nodes that its sources are
    made: tuple[int, ...]  # of each hidden layer: the layer before its nodes
    taken: tuple[int, ...]  # the layer that holds the edges out of them
    starts: tuple[int, ...]  # the first of its nodes
    source: tuple[Tensor, ...]  # of the edge into each node
    edge_in: tuple[Tensor, ...]  # its place in the weight before the nodes
    target: tuple[Tensor, ...]  # of the edge out of each node
    edge_out: tuple[Tensor, ...]  # its place in the weight behind the nodes
    ends_run: tuple[Tensor, ...]  # the places in h of nodes whose edge out is no edge in: the last of their runs
    run: Tensor  # [H], of each hidden node, layer after layer
    first: Tensor  # [runs], the first node of each
    special: int  # s, counted from 0: the layer before the first of the widest hidden layers
    reduced: tuple[bool, ...]  # the layers of which T takes sums: of each two neighbours one, few weights in all
    depth: tuple[float, ...]  # D, the mean number of layers on the way to each layer's targets

    @property
    def runs(self) -> int:
        return len(self.first)

    @property
    def widths(self) -> list[int]:
        return [self.shapes[l].targets for l in self.made]

    @property
    def hidden(self) -> int:
        return sum(self.widths)


def skeleton(shapes: tuple[Shape, ...], device: torch.device, wiring: Wiring | None = None) -> Skeleton:
    """The skeleton of some layers: edges (o, o mod I) into nodes and (i mod O, i) out of them, at centre taps.

    A node that several layers take has its edge out in the last of them. wiring: None of a chain.
    """
    return capture.kept(_skeleton(shapes, device, wiring), device)


@functools.lru_cache(1 << 8)
def _skeleton(shapes: tuple[Shape, ...], device: torch.device, wiring: Wiring | None = None) -> Skeleton:
    wires = wiring or Wiring.of_chain(shapes)
    taken_by = [wires.taken(l) for l in range(len(shapes))]
    made = [l for l, takers in enumerate(taken_by) if takers]
    taken = [taken_by[l][-1] for l in made]
    starts = [*accumulate((shapes[l].targets for l in made), initial=0)]
    H, start = starts.pop(), {-1: -1, **dict(zip(made, starts, strict=True))}

    def part(number: int, count: int) -> Tensor:
        if number < 0:
            return torch.full((count,), H, device=device)
        return torch.arange(start[number], start[number] + count, device=device)

    nodes = [torch.cat([part(*its) for its in parts]) for parts in wires.sources]
    source, edge_in, target, edge_out = [], [], [], []
    layer_out, place_out = (torch.full((H + 1,), -1, device=device) for _ in range(2))
    for l, taker in zip(made, taken, strict=True):
        sources, edges = shapes[l].into(device, wires.turned[l])
        source.append(nodes[l][sources])
        edge_in.append(edges)
        at = [number for number, _ in wires.sources[taker]].index(l)
        begin = sum(count for _, count in wires.sources[taker][:at])
        its = slice(begin, begin + shapes[l].targets)
        targets, edges = (x[its] for x in shapes[taker].out_of(device, wires.turned[taker]))
        target.append(targets + start[taker] if taker in start else torch.full_like(targets, H))
        edge_out.append(edges)
        own = slice(start[l], start[l] + len(edges))
        layer_out[own], place_out[own] = taker, edges
    run, ends, total = torch.zeros(H + 1, dtype=torch.int64, device=device), torch.ones_like(layer_out) > 0, 0
    for l, begin, sources, edges in zip(made, starts, source, edge_in, strict=True):
        joined = (layer_out[sources] == l) & (place_out[sources] == edges)
        ends[sources[joined]] = False
        runs, fresh = run[sources], int((~joined).sum())
        runs[~joined] = torch.arange(total, total + fresh, device=device)
        run[begin : begin + len(edges)] = runs
        total += fresh
    every = run[:H].clone()
    first = torch.full((total,), H, device=device)
    first.scatter_reduce_(0, every, torch.arange(H, device=device), "amin")
    widths = [shapes[l].targets for l in made]
    depth: list[float] = []
    for parts in wires.sources:
        total_depth = sum(count * depth[number] for number, count in parts if number >= 0)
        depth.append(1 + total_depth / sum(count for _, count in parts))
    return Skeleton(
        shapes,
        wires,
        tuple(nodes),
        tuple(made),
        tuple(taken),
        tuple(starts),
        tuple(source),
        tuple(edge_in),
        tuple(target),
        tuple(edge_out),
        tuple(x.nonzero().squeeze(1) for x in ends[:H].split(widths)),
        every,
        first,
        made[widths.index(max(widths))] if widths else 0,
        _cover(shapes) if wires == Wiring.of_chain(shapes) else _cover_of_graph(shapes, wires),
        tuple(depth),
    )


def _cover(shapes: Sequence[Shape]) -> tuple[bool, ...]:
    """Chooses one layer at least of each two neighbours, with the fewest weights, by dynamic programming."""
    sizes = [math.prod(shape) for shape in shapes]
    without, taken = (0, (False,)), (sizes[0], (True,))
    for size in sizes[1:]:
        cheaper = min(without, taken)
        without, taken = (taken[0], (*taken[1], False)), (cheaper[0] + size, (*cheaper[1], True))
    return min(without, taken)[1]


def _cover_of_graph(shapes: Sequence[Shape], wiring: Wiring) -> tuple[bool, ...]:
    """Chooses one layer at least of each two neighbours: leaves out the largest that it can, one after the other."""
    neighbours: list[set[int]] = [set() for _ in shapes]
    for l, parts in enumerate(wiring.sources):
        for number in {number for number, _ in parts if number >= 0}:
            neighbours[l].add(number)
            neighbours[number].add(l)
    chosen = [True] * len(shapes)
    for l in sorted(range(len(shapes)), key=lambda l: -math.prod(shapes[l])):
        chosen[l] = not all(chosen[other] for other in neighbours[l])
    return tuple(chosen)


def prefixes(edges_in: Sequence[Tensor], bones: Skeleton) -> Tensor:
    """P of every hidden node [H], from the skeleton weights into it."""
    P = edges_in[0].new_ones(bones.hidden + 1)
    for start, weights, before in zip(bones.starts, edges_in, bones.source, strict=True):
        P[start : start + len(weights)] = weights * P[before]
    return P[:-1]


def suffixes(edges_out: Sequence[Tensor], bones: Skeleton) -> Tensor:
    """S of every hidden node [H], from the skeleton weights out of it."""
    S = edges_out[0].new_ones(bones.hidden + 1)
    for start, weights, behind in [*zip(bones.starts, edges_out, bones.target, strict=True)][::-1]:
        S[start : start + len(weights)] = weights * S[behind]
    return S[:-1]


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


def as_edges(x: Tensor, bones: Skeleton, layer: int) -> Tensor:
    """A view of a layer's weight, or of what is shaped as it, as [G, O, I, T]; a copy where no view can be."""
    shape = bones.shapes[layer]
    return x.reshape(shape.turned).transpose(1, 2) if bones.wiring.turned[layer] else x.reshape(shape)


def layer_flows(layers: Sequence[Layer], bones: Skeleton, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Σ w g over the edges into each target [G · O], and over those out of each source [G · I], of some layers."""
    flows = []
    for number in numbers:
        weight, grad, *_ = layers[number]
        through = as_edges(weight, bones, number) * as_edges(grad, bones, number)
        flows.append((through.sum((2, 3)).flatten(), through.sum((1, 3)).flatten()))
    return flows


def node_flows(
    layers: Sequence[Layer],
    bones: Skeleton,
    reduced: Sequence[bool],
    layer_flows: Callable[..., list[tuple[Tensor, Tensor]]] = layer_flows,
) -> Tensor:
    """T of every hidden node [H]: of the edges in if the layer before it is among the `reduced`, else of those out."""
    T = layers[0].weight.new_zeros(bones.hidden + 1)
    numbers = [number for number, chosen in enumerate(reduced) if chosen]
    flows = dict(zip(numbers, layer_flows(layers, bones, numbers), strict=True))
    for number, (_, out) in flows.items():
        T.index_add_(0, bones.nodes[number], out)
    for number, start in zip(bones.made, bones.starts, strict=True):
        if number in flows:
            into, (_, _, bias, bias_grad, *_) = flows[number][0], layers[number]
            T[start : start + len(into)] = into if bias is None or bias_grad is None else into + bias * bias_grad
    return T[:-1]


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


def move(layers: Sequence[Layer], bones: Skeleton, ends: Sequence[Ends], options: Options, kept: Tensor) -> None:
    """The weights of all layers, in place, as if none were on the skeleton; those not moved are counted in `kept`."""
    for number, (layer, (prefix, p, suffix, q)) in enumerate(zip(layers, ends, strict=True)):
        G, O, I, _ = bones.shapes[number]
        weight, grad = as_edges(layer.weight, bones, number), as_edges(layer.grad, bones, number)
        momentum = None if layer.momentum is None else as_edges(layer.momentum, bones, number)
        ψ = prefix.view(G, 1, I, 1) * suffix.view(G, O, 1, 1)
        m = velocity(ψ * weight, grad / ψ, momentum, options)
        new = (weight - options.lr * (m / ψ)) / (p.view(G, 1, I, 1) * q.view(G, O, 1, 1))
        settle(weight, new, momentum, m, kept)


def _move_biases(layers: Sequence[Layer], ends: Sequence[Ends], options: Options, kept: Tensor) -> None:
    for layer, (_, _, S, q) in zip(layers, ends, strict=True):
        if layer.bias is not None and layer.bias_grad is not None:
            m = velocity(S * layer.bias, layer.bias_grad / S, layer.bias_momentum, options)
            settle(layer.bias, (layer.bias - options.lr * (m / S)) / q, layer.bias_momentum, m, kept)


def evening(layers: Sequence[Layer], bones: Skeleton) -> list[Tensor]:
    """c of every hidden layer, [G · O] each: what scales its nodes so that their path norms are even.

    A is kept at a mean of 1 in each layer, and the logarithm of what it was divided by beside it: products over many
    layers leave the range of numbers. A node that no path reaches counts as one of mean norm.
    """
    dtype, made = layers[0].weight.dtype, set(bones.made)
    zero = layers[0].weight.new_zeros((), dtype=torch.float64)
    logs, found = [], []
    for number, (layer, shape, parts) in enumerate(zip(layers, bones.shapes, bones.wiring.sources, strict=True)):
        of_parts = [zero if source < 0 else logs[source] for source, _ in parts]
        log = functools.reduce(torch.maximum, of_parts)
        A = torch.cat(
            [
                (found[source] if source >= 0 else zero.new_ones(count)) * (own - log).exp()
                for (source, count), own in zip(parts, of_parts, strict=True)
            ]
        )
        squares = as_edges(layer.weight, bones, number).square().sum(3)
        squares = squares * A.to(dtype).view(shape.groups, 1, shape.inputs)
        A = squares.sum(2).flatten().double()
        if layer.bias is not None and number in made:
            A = A + layer.bias.double().square() * log.neg().exp()
        logs.append(log + A.mean().log())
        A = A / A.mean()
        found.append(torch.where(A == 0, 1.0, A))
    last = [number for number in range(len(layers)) if number not in made]
    rate = torch.stack([logs[number] for number in last]).sum() / sum(bones.depth[number] for number in last)
    return [((rate * bones.depth[l] - logs[l]).exp() / found[l]).sqrt().to(dtype) for l in bones.made]


def _ends(bones: Skeleton, P: Tensor, p: Tensor, S: Tensor, q: Tensor, beyond: Tensor) -> list[Ends]:
    """The four of every layer, from those of the hidden nodes [H]; S and q are `beyond`, [1], where paths end."""
    one = P.new_ones(1)
    P, p = torch.cat((P, one)), torch.cat((p, one))
    start, ends = dict(zip(bones.made, bones.starts, strict=True)), []
    for number, (shape, nodes) in enumerate(zip(bones.shapes, bones.nodes, strict=True)):
        if number in start:
            its = slice(start[number], start[number] + shape.targets)
            ends.append(Ends(P[nodes], p[nodes], S[its], q[its]))
        else:
            ends.append(Ends(P[nodes], p[nodes], beyond.expand(shape.targets), one.expand(shape.targets)))
    return ends


def _step_by_norms(
    layers: Sequence[Layer], bones: Skeleton, options: Options, kept: Tensor, move: Callable[..., None]
) -> None:
    c = torch.cat(evening(layers, bones))
    ends = _ends(bones, 1 / c, torch.ones_like(c), c, torch.ones_like(c), c.new_ones(1))
    move(layers, bones, ends, options, kept)
    _move_biases(layers, ends, options, kept)


def path_step_ref(
    layers: Sequence[Layer],
    bones: Skeleton,
    run_momentum: Tensor | None,
    events: Tensor,
    options: Options,
    layer_flows: Callable[..., list[tuple[Tensor, Tensor]]] = layer_flows,
    move: Callable[..., None] = move,
) -> None:
    """The step, in place, of all parameters, the momenta of `layers` and run_momentum [runs].

    To events, int64 [3], is added how many R the bounds held, how many of those were not positive, and how many weights
    kept their values because the new ones would not have been finite. A momentum is there for each parameter where
    options.momentum is not 0. layer_flows and move are the two passes over the weights; everything else is as small as
    the layers are wide.
    """
    lr, _, _, least_ratio, floor, norms = options
    kept = events[2]
    if norms:
        _step_by_norms(layers, bones, options, kept, move)
        return
    edges = [layer.weight.view(-1) for layer in layers]
    through = [layer.grad.reshape(-1) for layer in layers]
    w_in = [edges[l][at] for l, at in zip(bones.made, bones.edge_in, strict=True)]
    w_out = [edges[l][at] for l, at in zip(bones.taken, bones.edge_out, strict=True)]
    P, S = prefixes(w_in, bones), suffixes(w_out, bones)

    own = [w * through[l][at] for l, w, at in zip(bones.made, w_in, bones.edge_in, strict=True)]
    for h, last in enumerate(bones.ends_run):
        own[h][last] += w_out[h][last] * through[bones.taken[h]][bones.edge_out[h][last]]
    surplus = torch.cat(own) - node_flows(layers, bones, bones.reduced, layer_flows)
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
    ratios = (torch.maximum(ratio, least) * nothing)[bones.run]

    parts = [(r, torch.ones_like(r)) for r in ratios.split(bones.widths)]
    sides = [pair if l >= bones.special else pair[::-1] for l, pair in zip(bones.made, parts, strict=True)]
    p, q = (torch.cat(side) for side in zip(*sides, strict=True))
    ends = _ends(bones, P, p, S * nothing, q, nothing.view(1))
    move(layers, bones, ends, options, kept)
    _move_biases(layers, ends, options, kept)
    p, q = (torch.cat((x, x.new_ones(1))) for x in (p, q))
    for h, start in enumerate(bones.starts):
        nodes = slice(start, start + len(w_in[h]))
        scale = ratios[nodes] / (p[bones.source[h]] * q[nodes])
        _place(edges[bones.made[h]], bones.edge_in[h], w_in[h], scale, kept, is_sound)
        last, target = bones.ends_run[h], bones.target[h][bones.ends_run[h]]
        scale = ratios[nodes][last] / (p[nodes][last] * q[target])
        _place(edges[bones.taken[h]], bones.edge_out[h][last], w_out[h][last], scale, kept, is_sound)
    events[:2].add_(torch.stack((held.sum(), (held & (ratio <= 0)).sum())))


def _place(edge: Tensor, at: Tensor, w: Tensor, scale: Tensor, kept: Tensor, is_sound: Tensor) -> None:
    """w times scale on the skeleton's edges, or w where that is not finite; of an unsound chain `move` counted them."""
    new = w * scale
    finite = new.isfinite()
    edge[at] = torch.where(finite, new, w)
    kept.add_((~finite & is_sound).sum())
