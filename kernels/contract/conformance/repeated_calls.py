"""Promises that a call behaves as the first of its layout did, however often it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ....autotune import reload
from ..comparison import assert_same
from ..spec import Spec
from .calls import TURNS, as_leaves, unequal_weights, value_and_gradients
from .case import Case


def checkpointing(spec: Spec, device: torch.device) -> Iterator[Case]:
    """torch.utils.checkpoint, which demands that the second forward saves the same tensors."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():
        for reentrant in (True, False):

            def run(kwargs=kwargs, reentrant=reentrant):
                reload()  # forgets plans and configs: the next call is a first one
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                got = []
                for _ in range(TURNS):
                    inputs, leaves = as_leaves(args)
                    out = checkpoint(lambda *x: spec.op(*x, **kwargs), *inputs, use_reentrant=reentrant)
                    assert isinstance(out, Tensor)
                    out.backward(unequal_weights(out))
                    got.append((out.detach(), *(x.grad for x in leaves)))
                expected = value_and_gradients(spec, args, kwargs, unequal_weights)
                for turn, one in enumerate(got):
                    assert_same(one, expected, device.type == "cpu", f"call {turn}")

            yield Case(spec.name, "checkpointing", f"{variant}-{'reentrant' if reentrant else 'hooks'}", run)


def saved_tensors(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Hooks that copy the saved tensors on their way in and out: each call saves the same and gives the same result."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            reload()
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            saved, got = [], []

            def pack(x):
                saved[-1].append((x.shape, x.stride(), x.dtype, x.device))
                return x.clone()

            with torch.autograd.graph.saved_tensors_hooks(pack, torch.clone):
                for _ in range(TURNS):
                    saved.append([])
                    got.append(value_and_gradients(spec, args, kwargs, unequal_weights))
            expected = value_and_gradients(spec, args, kwargs, unequal_weights)
            for turn, one in enumerate(got):
                assert saved[turn] == saved[0], f"call {turn} saves {saved[turn]}; the first saved {saved[0]}"
                assert_same(one, expected, device.type == "cpu", f"call {turn}")

        yield Case(spec.name, "saved_tensors", variant, run)


def graph(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Each call's graph is the first one's: its nodes, their kinds, and the errors that misusing it raises."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():
        for with_winners in (False, True) if spec.has_winners(kwargs) else (False,):

            def run(kwargs=kwargs, with_winners=with_winners):
                reload()
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                options = {**kwargs, "return_indices": True} if with_winners else kwargs
                graphs = [_graph_of_a_call(spec, args, options) for _ in range(TURNS)]
                for turn, one in enumerate(graphs):
                    assert one == graphs[0], f"call {turn} has the graph {one}; the first had {graphs[0]}"

            yield Case(spec.name, "graph", variant + "-winners" * with_winners, run)


def _graph_of_a_call(spec: Spec, args, kwargs) -> list[Any]:
    """The results' kinds, the names of the graph's nodes, and the messages of two errors of its backward."""
    inputs, _ = as_leaves(args)
    made = spec.op(*inputs, **kwargs)
    results = made if isinstance(made, tuple) else (made,)
    account: list[Any] = [type(made).__name__, *((x.dtype, x.requires_grad, x.is_leaf, x._version) for x in results)]
    waiting = [results[0].grad_fn]
    while waiting:
        node = waiting.pop(0)
        if node is not None:
            account.append(node.name())
            waiting += [before for before, _ in node.next_functions]
    results[0].sum().backward()
    account.append(_error_of(results[0].sum().backward))  # its buffers are freed
    made = spec.op(*inputs, **kwargs)
    result = made[0] if isinstance(made, tuple) else made
    with torch.no_grad():
        for x in inputs:
            x.add_(0)
    account.append(_error_of(result.sum().backward))  # a saved tensor has been changed since
    return account


def _error_of(call: Callable[[], object]) -> str:
    """The message of the error that a call raises, without what differs from call to call; "" if it raises none."""
    try:
        call()
    except RuntimeError as error:
        return re.sub(r"0x[0-9a-f]+|(version|is at) \d+", "", str(error))
    return ""


def profiler(spec: Spec, device: torch.device) -> Iterator[Case]:
    """torch.profiler sees the same operators in each call, the fourth like the first."""
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            reload()
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            named = []
            value_and_gradients(spec, args, kwargs)
            for _ in range(TURNS):
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                    value_and_gradients(spec, args, kwargs)
                events = profile.events()
                assert events is not None
                named.append(sorted(event.name for event in events))
                value_and_gradients(spec, args, kwargs)  # and one without a profiler
            for turn, names in enumerate(named):
                assert names == named[0], f"call {turn} is {names} to the profiler; the first was {named[0]}"

        yield Case(spec.name, "profiler", variant, run)
