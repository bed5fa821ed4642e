"""A smaller network that computes the same: units that nothing reaches, or that reach nothing, are left out.

A link is two Linear or Conv layers with nothing between them but what acts on each channel for itself. Its hidden units
are the channels. In eval mode a unit can go when

    its outgoing weights are all 0; or
    it is constant: its incoming weights are all 0, or the scale of a BatchNorm behind it is. Its value v, taken through
    what stands between, goes into the next bias:  b ← b + Σ_c Σ_t W[:, c, t] v[c, t],  t a tap, or a position that a
    Flatten laid beside the others.

Zero padding of the next convolution makes a constant channel v ≠ 0 differ at the borders, where fewer taps see it. That
is no bias, but it is linear in v: of several such channels one is kept, and its weights are made Σ_c W[:, c] v[c] over
its own v. A layer keeps one unit at least. Dropping a unit empties others, so all is repeated until nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...autotune.timing import Interval, interleaved
from ..path_space.tracing import unwrapped
from . import weights
from .links import Link, find_links

_BUDGET_S = 1.0  # for timing both networks
_AGREES = 1e-3  # of the largest output: rounding moves it far less, a wrong unit far more


@dataclass(frozen=True)
class CompactionReport:
    """How a network was made smaller.

    Attributes:
        layers: name → (units before, units after), of the Linear and Conv layers whose units are hidden.
        parameters, parameters_before: how many numbers the parameters hold.
        bytes, bytes_before: of parameters and buffers.
        left: name → why: layers that kept units which are of no use, or whose units could not be looked at.
        seconds, seconds_before: the median time of a call in eval mode, and its 95 % interval; None without inputs.
        speedup: how many times longer a call of the network took before, from calls in turn.
        largest_difference: between the outputs of both.
    """

    layers: Mapping[str, tuple[int, int]]
    parameters: int
    parameters_before: int
    bytes: int
    bytes_before: int
    left: Mapping[str, str]
    seconds: Interval | None = None
    seconds_before: Interval | None = None
    speedup: Interval | None = None
    largest_difference: float | None = None

    def __str__(self) -> str:
        width = max([len(name) for name in (*self.layers, *self.left)], default=0)
        lines = [f"{name:<{width}}  {before} → {after} units" for name, (before, after) in self.layers.items()]
        lines += [f"{name:<{width}}  left: {why}" for name, why in self.left.items()]
        lines.append(
            f"{self.parameters:,} of {self.parameters_before:,} parameters, "
            f"{self.bytes:,} of {self.bytes_before:,} bytes"
        )
        if self.seconds is not None and self.seconds_before is not None and self.speedup is not None:
            lines.append(
                f"{self.seconds.value * 1e6:.1f} µs a call, {self.seconds_before.value * 1e6:.1f} before: "
                f"{self.speedup.value:.2f} × faster [{self.speedup.low:.2f}, {self.speedup.high:.2f}]; "
                f"outputs differ by {self.largest_difference:.1e} at most"
            )
        return "\n".join(lines)


class Compacted(NamedTuple):
    """A smaller network, in eval mode, and how it was made."""

    model: nn.Module
    report: CompactionReport


def compact(model: nn.Module, state: Mapping[str, Tensor] | None = None, *, example_inputs: Any = None) -> Compacted:
    """A smaller copy of a model with the same outputs in eval mode, up to rounding.

    Shrunk are Linear and Conv1d to Conv3d layers that follow each other with elementwise activations, BatchNorm,
    pooling, Dropout and flattening between them, in nested Sequentials or in a forward that torch.fx can trace. What
    cannot be shrunk stays as it is, and the report says why. The copy can be trained further.

    Args:
        model: it stays as it is. Its inputs are taken to have a dimension of samples, and the output of a Linear before
            a BatchNorm1d or a PReLU no other than that and its units.
        state: parameters and buffers by name, which the copy is given first; None: the model's own.
        example_inputs: what the model's forward takes, a tensor or a tuple of positional arguments, on the model's
            device. With them both networks are timed and compared.

    Returns:
        (model, report).

    Raises:
        TypeError: model is no module.
        ValueError: the model cannot be copied; the state does not fit it; or on example_inputs the copy computes
            something else, since the forward depends on a layer's size.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compact: model is a {type(model).__name__}; expected a torch.nn.Module")
    own = _copied(model).eval()
    if state is not None:
        clause = weights.misfit(state, own)
        if clause is not None:
            raise ValueError(f"compact: the state does not fit the model ({type(model).__name__}): {clause}")
        weights.write(state, own)
    before = unwrapped(own)
    after = copy.deepcopy(before)
    links, left = find_links(after)
    units = {link.source: link.units for link in links}
    kept: dict[str, str] = {}
    with torch.no_grad():
        while any(_shrink(link, kept) for link in links):
            pass
    report = CompactionReport(
        layers={link.source: (units[link.source], link.units) for link in links},
        parameters=_parameters(after),
        parameters_before=_parameters(before),
        bytes=_bytes(after),
        bytes_before=_bytes(before),
        left={**left, **kept},
    )
    if example_inputs is not None:
        report = _measured(report, before, after, example_inputs)
    return Compacted(after, report)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"compact: {type(model).__name__} cannot be copied ({error}); expected weights that are parameters: of "
            "torch.nn.utils.prune, prune.remove(module, 'weight') writes a mask into them"
        ) from error


# ------------------------------------------------------------------------------------------------- one link's units


def _shrink(link: Link, kept: dict[str, str]) -> bool:
    """Drops a link's units that can go; returns whether anything changed, and notes in `kept` why some stayed."""
    columns = link.columns()  # [O, C, T]
    useless = (columns == 0).all(2).all(0)
    values, constant, pooling = link.constants()  # [C, 1 or T], [C]
    constant &= ~useless
    kept.pop(link.source, None)
    if pooling is not None:
        kept[link.source] = f"constant units stay, which {pooling} makes another at the borders"
    drop, folded = useless | constant, constant
    if link.pads_with_zeros:
        borders = constant & (values != 0).any(1)
        folded = constant & ~borders
        places = borders.nonzero().flatten()
        if len(places) > 0:
            stand_in = places[values[places, 0].abs().argmax()]
            drop[stand_in] = False
            if len(places) > 1:
                link.set_columns(stand_in, _joined(columns, values, places).sum(1) / values[stand_in])
            kept[link.source] = (
                "a constant unit stays, in which those of its kind are joined: "
                f"{link.target} pads with zeros, so at the borders it is no bias"
            )
    shift = _joined(columns, values, folded.nonzero().flatten()).sum(2).sum(1)
    if bool((shift != 0).any()):
        link.add_to_bias(shift)
    if bool(drop.all()):
        # no layer can be empty: one unit stays, which nothing reaches and which reaches nothing
        kept[link.source] = "one unit of no use stays, since a layer cannot be empty"
        changed = link.silence(0)
        if link.units == 1:
            return changed
        drop[0] = False
    if not bool(drop.any()):
        return False
    link.keep((~drop).nonzero().flatten())
    return True


def _joined(columns: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Products [O, units, T] of the weights of some constant units and their values."""
    return columns[:, places].double() * values[places]


# ------------------------------------------------------------------------------------------------------ the figures


def _measured(report: CompactionReport, before: nn.Module, after: nn.Module, example_inputs: Any) -> CompactionReport:
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with torch.no_grad():
        expected = before(*inputs)
        try:
            actual = after(*inputs)
        except Exception as error:  # the model's own code, which fails in its own ways
            raise ValueError(
                f"compact: the smaller network fails on example_inputs ({type(error).__name__}: {error}): the forward "
                f"of {type(before).__name__} depends on a layer's size; expected a forward that takes it from its input"
            ) from error
        pairs = list(zip(_tensors(actual), _tensors(expected), strict=False))
        same_shapes = all(a.shape == b.shape for a, b in pairs)
        largest = max([float((a - b).abs().max()) for a, b in pairs if b.numel()], default=0.0) if same_shapes else nan
        scale = max([float(b.abs().max()) for _, b in pairs if b.numel()], default=0.0)
        if not largest <= _AGREES * max(scale, 1.0):
            raise ValueError(
                f"compact: on example_inputs the outputs of the smaller network differ by {largest:.3g}, of "
                f"{scale:.3g} at most; expected none but rounding: the forward of {type(before).__name__} depends on "
                "a layer's size, or a BatchNorm1d or PReLU behind a Linear sees other dimensions than "
                "samples and units"
            )
        samples = interleaved({"before": lambda: before(*inputs), "after": lambda: after(*inputs)}, budget_s=_BUDGET_S)
    return CompactionReport(
        **{
            **vars(report),
            "seconds": samples["after"].median,
            "seconds_before": samples["before"].median,
            "speedup": samples["before"].ratio(samples["after"]),
            "largest_difference": largest,
        }
    )


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.double()]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [t for part in output for t in _tensors(part)] if isinstance(output, list | tuple) else []


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
