"""The step on path values with other configs than the default: the same bits, and the default is what runs unasked."""

import random

import pytest
import torch

from tropigrad import autotune
from tropigrad.kernels.path_step import Layer, Options, Shape, by_cpp, by_triton, path_step_ref, skeleton
from tropigrad.kernels.runtime import backend

CPU = torch.device("cpu")
SHAPES = (Shape(1, 40, 130, 1), Shape(1, 50, 40, 1), Shape(2, 5, 25, 1), Shape(1, 3, 10, 1))
OPTIONS = Options(0.05, momentum=0.9, weight_decay=0.1)


def stepped(step) -> list[torch.Tensor]:
    """What a step writes, of the same chain each time."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        x = torch.randn(size, generator=generator)
        return x + 0.5 * x.sign()

    layers = [Layer(draw(*s), draw(*s), draw(s.targets), draw(s.targets), draw(*s), draw(s.targets)) for s in SHAPES]
    bones = skeleton(SHAPES, CPU)
    run_momentum, events = draw(bones.runs), torch.zeros(3, dtype=torch.int64)
    step(layers, bones, run_momentum, events, OPTIONS)
    return [x for layer in layers for x in layer if x is not None] + [run_momentum, events]


def stepped_by_triton(layers, bones, run_momentum, events, options) -> None:
    path_step_ref(layers, bones, run_momentum, events, options, by_triton.layer_flows, by_triton.move)


@pytest.mark.parametrize(
    ("path", "step", "kernels"),
    [("cpp", by_cpp.path_step, [by_cpp.STEP]), ("triton", stepped_by_triton, [by_triton.FLOWS, by_triton.MOVE])],
    ids=["cpp", "triton"],
)
def test_a_step_asks_and_any_config_gives_the_same_bits(path, step, kernels):
    if reason := backend.why_off(path, CPU):
        pytest.skip(reason)
    with autotune.mode("off"), autotune.recorded() as choices:
        expected = stepped(step)
    assert list(choices) == [kernel.name for kernel in kernels]
    for kernel in kernels:
        assert choices[kernel.name].config == kernel.default({})
        configs = [config for config in kernel.space if config.get("threads", 0) <= 4]
        for config in random.Random(0).sample(configs, min(len(configs), 4)):
            with autotune.override(kernel.name, config):
                for got, wanted in zip(stepped(step), expected, strict=True):
                    assert torch.equal(got, wanted), dict(config)
