"""Every kernel asks the tuner which config to run with, runs its default unless told, and gives the same bits with any.

The ops are those of the registry: one that is added and fixes its own threads or blocks, or whose choices change a
result, fails here.
"""

import ast
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import tropigrad.kernels
import tropigrad.optim
from tropigrad import autotune
from tropigrad.autotune.tunable import launches
from tropigrad.kernels.contract.comparison import assert_same
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend

CPU = torch.device("cpu")
PATHS = [
    pytest.param(op, path, id=f"{op}-{path}")
    for op in autotune.TUNABLE
    for path in ("cpp", "triton")
    if path in (REGISTRY[op].backends if op in REGISTRY else ("cpp",))
]
SOURCES = sorted(
    path
    for folder in (tropigrad.kernels, tropigrad.optim)
    for path in Path(str(folder.__file__)).resolve().parent.rglob("*.py")
)


def shape_of(op: str, path: str) -> Mapping[str, int]:
    tunable = autotune.TUNABLE[op]
    shape = tunable.middle if path == "cpp" else tunable.interpreted
    return shape or next(iter(tunable.shapes.values()))


@pytest.mark.parametrize(("op", "path"), PATHS)
def test_a_call_asks_and_runs_with_the_default(op, path):
    if backend.why_off(path, CPU):
        pytest.skip(backend.why_off(path, CPU))
    known = {kernel for tunable in autotune.TUNABLE.values() for kernel in tunable.kernels}
    with backend.forcing(path), autotune.mode("off"):
        seen = list(launches(autotune.TUNABLE[op], shape_of(op, path), torch.float32, CPU))
    assert seen, f"{op} runs on {path} and asks for no config"
    for launched in seen:
        assert launched.kernel in known, f"no spec lists {launched.kernel.name}"
        assert launched.choice.config == launched.kernel.default(launched.problem)
        assert launched.choice.config in launched.kernel.space
    listed = REGISTRY[op].tuned.get(path, ()) if op in REGISTRY else autotune.TUNABLE[op].kernels
    names = {kernel.name for kernel in listed if op in REGISTRY or kernel.name.endswith(f".{path}")}
    assert names <= {launched.kernel.name for launched in seen}


@pytest.mark.parametrize(
    ("op", "kernel"),
    [
        pytest.param(op, kernel, id=kernel.name)
        for op, tunable in autotune.TUNABLE.items()
        for kernel in tunable.kernels
        if kernel.name.endswith(".cpp")
    ],
)
def test_any_config_gives_the_same_bits(op, kernel):
    """Sums of floats included: neither threads nor blocks change the order in which anything is added."""
    if backend.why_off("cpp", CPU):
        pytest.skip(backend.why_off("cpp", CPU))
    with backend.forcing("cpp"):
        found = [x for x in launches(autotune.TUNABLE[op], shape_of(op, "cpp"), torch.float32, CPU)
                 if x.kernel is kernel]  # fmt: skip
        call = found[0].call
        expected = [x.clone() for x in result(call)]
        configs = [config for config in kernel.space if config.get("threads", 0) <= 4]
        for config in random.Random(0).sample(configs, min(len(configs), 12)):
            with autotune.override(kernel.name, config):
                assert_same(result(call), expected, True, f"{kernel.name} with {dict(config)}")


def result(call: autotune.Call):
    return call.fresh()() if call.fresh else call.run()


def test_one_place_says_how_many_threads_a_cpp_kernel_takes():
    """native.threads, by the config: whoever asks torch for its number has not asked the tuner."""
    others = {"native", "conformance"}  # a part of a library's label; what sets the number, and sets it back
    assert {path.parent.name for path in SOURCES if "get_num_threads" in path.read_text()} <= others


def test_triton_tunes_nothing_by_itself():
    words = ("triton.autotune", "triton.heuristics")
    assert not [path for path in SOURCES if any(word in path.read_text() for word in words)]


def launches_in(path: Path):
    """`_some_kernel[grid](...)`: where it stands, and its keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            name = getattr(node.func.value, "id", "")
            if name.endswith("_kernel"):
                yield f"{path.parent.name}/{path.name}:{node.lineno} {name}", node.keywords


def test_no_launch_of_a_triton_kernel_writes_blocks_or_warps_down():
    """They come in `**config`."""
    found = [launch for path in SOURCES for launch in launches_in(path)]
    assert len(found) > 15
    for where, keywords in found:
        assert any(keyword.arg is None for keyword in keywords), f"{where} takes no **config"
        for keyword in keywords:
            is_number = isinstance(keyword.value, ast.Constant) and type(keyword.value.value) is int
            assert not is_number, f"{where} fixes {keyword.arg}"
