"""The configs of a kernel: their product, their neighbours, and what a device forbids."""

import itertools

import pytest

from tropigrad.autotune import Limits, Needs, Space
from tropigrad.autotune.keys import canonical


@pytest.mark.parametrize(
    ("config", "needs", "reason"),
    [
        ({"num_warps": 4}, Needs(registers=255, shared=100), ""),
        ({"num_warps": 33}, Needs(), "1056 threads a block, the device has 1024"),
        ({}, Needs(shared=101), "101 bytes of shared memory a block, the device has 100"),
        ({}, Needs(registers=256), "256 registers a thread, an instruction can name 255"),
    ],
    ids=["fits", "threads", "shared", "registers"],
)
def test_limits_say_what_is_too_much(config, needs, reason):
    assert Limits(threads=1024, warp=32, shared=100).why_not(config, needs) == reason


def test_a_space_is_the_product_of_its_choices():
    space = Space({"BLOCK": (16, 32), "num_warps": (4, 8)})
    assert len(list(space)) == 4
    assert {"BLOCK": 16, "num_warps": 8} in space
    for stranger in ({"BLOCK": 16}, {"BLOCK": 64, "num_warps": 4}, {"BLOCK": 16.0, "num_warps": 4}, "BLOCK"):
        assert stranger not in space


def test_neighbours_differ_in_one_choice_by_one():
    space = Space({"x": (1, 2, 3), "y": (5, 7)})
    assert list(space.neighbours({"x": 2, "y": 5})) == [{"x": 1, "y": 5}, {"x": 3, "y": 5}, {"x": 2, "y": 7}]
    for config in space:
        for other in space.neighbours(config):
            assert other in space
            assert config in list(space.neighbours(other))
    reached, waiting = set(), [next(iter(space))]
    while waiting:
        config = waiting.pop()
        reached.add(canonical(config))
        waiting += [other for other in space.neighbours(config) if canonical(other) not in reached]
    assert len(reached) == len(list(itertools.product((1, 2, 3), (5, 7))))
