"""The Triton kernels as a GPU's compiler sees them: the interpreter accepts what no GPU would compile.

Run as a script without TRITON_INTERPRET, this file compiles what it is told and prints the machine code's costs.
"""

import functools
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tropigrad.autotune.machine import ahead_of_time
from tropigrad.kernels import log_matmul
from tropigrad.kernels.path_step import Shape
from tropigrad.kernels.path_step import by_triton as path_step
from tropigrad.kernels.path_values import by_triton as paths
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime import elementwise as launch
from tropigrad.kernels.runtime.elementwise import Elementwise
from tropigrad.kernels.scatter_step import by_triton as sparse
from tropigrad.kernels.soft_threshold import BACKWARD as SOFT_THRESHOLD_BACKWARD
from tropigrad.kernels.soft_threshold import FORWARD as SOFT_THRESHOLD
from tropigrad.kernels.tournament import by_triton as trees
from tropigrad.kernels.tropical_conv2d import by_triton as convolution
from tropigrad.kernels.tropical_matmul import by_triton
from tropigrad.kernels.tropical_winners_scatter import by_triton as scatter
from tropigrad.optim.worst_sample import by_triton as worst_sample

pytest.importorskip("triton", reason="triton is not installed")

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp64": 64, "i32": 32, "i16": 16, "i8": 8}
DTYPES = tuple(BITS)
STRIDES = [f"stride_{x}" for x in ("ab", "am", "ak", "bb", "bk", "bn")]
PROBLEM = {"M": 1024, "N": 1024, "K": 1024}
SMALL = {"M": 128, "N": 64, "K": 64}
CONVOLUTION = ("groups", "C", "F", "H", "W", "P", "Q")
IMAGE = ("xb", "xc", "xh", "xw", "wo", "wc", "wh", "ww")
WINDOW = {"SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1, "KH": 3, "KW": 3}


def forward(dtype: str, problem=PROBLEM, keep="nothing", minimum=False, product=False, ignore_nan=False):
    """The selective forward kernel at its default config, for rows of A that can be read in words."""
    accumulator = {"i8": "i32"}.get(dtype, dtype)
    lowest = -(2 ** (BITS[accumulator] - 1)) if dtype.startswith("i") else float("-inf")
    zero = (-lowest - 1 if dtype.startswith("i") else -lowest) if minimum else lowest
    signature = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "c_ptr": f"*{accumulator}", "winner_ptr": "*i16"}
    signature |= dict.fromkeys(["M", "N", "K", "stride_ab", "stride_am", "stride_bb", "stride_bk"], "i32")
    name = "bfloat16" if dtype == "bf16" else dtype.replace("fp", "float") if dtype[0] == "f" else f"int{BITS[dtype]}"
    config = dict(by_triton.FORWARD.default(problem | {"dtype": f"torch.{name}", "winners": keep != "nothing"}))
    config["BLOCK_K"] = config["BLOCK_K"] if keep == "block" else 8
    warps = config.pop("num_warps")
    constants = {"stride_ak": 1, "stride_bn": 1, "WORST": zero, "EMPTY": zero, "KEEP": keep, "PACK": 64 // BITS[dtype]}
    flags = {"MINIMUM": minimum, "PRODUCT": product, "IGNORE_NAN": ignore_nan and not dtype.startswith("i")}
    return by_triton._tropical_matmul_fwd_kernel, signature, constants | flags | config, warps


def scatters(dtype: str, product=False, fixed=False):
    wide = "i64" if fixed else "fp64" if dtype == "fp64" else "fp32"
    signature = {"dc_ptr": f"*{dtype}", "winner_ptr": "*i16", "a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}"}
    signature |= {"da_ptr": f"*{wide}", "db_ptr": f"*{wide}"}
    signature |= dict.fromkeys(["special_a_ptr", "special_b_ptr", "largest_ptr"], "*i32")
    signature |= dict.fromkeys(["M", "N", "K", "stride_cb", "stride_cm", "stride_cn", *STRIDES], "i32")
    config = dict(scatter.SCATTER.default(PROBLEM))
    warps = config.pop("num_warps")
    flags = {"PRODUCT": product, "NEEDS_A": True, "NEEDS_B": True, "FIXED": fixed, "HEAD_ROOM_A": 10, "HEAD_ROOM_B": 10}
    return scatter._tropical_winners_scatter_kernel, signature, flags | config, warps


def largest(dtype: str):
    signature = {"x_ptr": f"*{dtype}", "largest_ptr": "*i32"}
    signature |= dict.fromkeys(["M", "N", "stride_b", "stride_m", "stride_n"], "i32")
    return scatter._largest_kernel, signature, {"BLOCK": 1024}, 4


def from_fixed_point(dtype: str):
    signature = {"sum_ptr": "*i64", "special_ptr": "*i32", "largest_ptr": "*i32", "out_ptr": f"*{dtype}", "size": "i32"}
    flags = {"PRODUCT": True, "HEAD_ROOM": 10, "FACTOR": 2, "BLOCK": 1024}
    return scatter._from_fixed_point_kernel, signature, flags, 4


def log_forward(dtype: str):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {f"{name}_ptr": f"*{dtype}" for name in ("a", "b", "c", "top")}
    signature |= {"share_ptr": f"*{wide}", "t_ptr": f"*{wide}"} | dict.fromkeys(["M", "N", "K", *STRIDES], "i32")
    config = dict(log_matmul.FORWARD.default(PROBLEM))
    warps = config.pop("num_warps")
    return log_matmul._log_matmul_fwd_kernel, signature, {"KEEPS": True, "IGNORE_NAN": False} | config, warps


def log_backward(dtype: str):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {"dc_ptr": f"*{dtype}", "top_ptr": f"*{dtype}", "share_ptr": f"*{wide}"}
    signature |= {f"{name}_ptr": f"*{dtype}" for name in ("a", "b", "da")} | {"t_ptr": f"*{wide}"}
    gradients = [f"stride_{x}" for x in ("gb", "gm", "gn", "cb", "cm", "cn")]
    signature |= dict.fromkeys(["M", "N", "K", *gradients, *STRIDES], "i32")
    config = dict(log_matmul.BACKWARD.default(PROBLEM))
    warps = config.pop("num_warps")
    return log_matmul._log_matmul_bwd_kernel, signature, {"IGNORE_NAN": True} | config, warps


def convolve(dtype: str, filters=64, minimum=False, winners=False, ignore_nan=False):
    integers = {"i32": -(2**31), "i16": -(2**15), "i8": -(2**31)}
    signature = {"x_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", "y_ptr": "*i32" if dtype == "i8" else f"*{dtype}"}
    signature |= {"winner_ptr": "*i16"} | dict.fromkeys([*CONVOLUTION, "KH", *(f"stride_{x}" for x in IMAGE)], "i32")
    config = dict(convolution.FORWARD.default({"filters": filters}))
    warps = config.pop("num_warps")
    flags = {"MINIMUM": minimum, "WINNERS": winners, "IGNORE_NAN": ignore_nan} | WINDOW
    del flags["KH"]
    kernel = convolution._tropical_conv2d_fwd_kernel
    return kernel, signature, {"ZERO": integers.get(dtype, float("-inf"))} | flags | config, warps


def convolve_back(dtype: str):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {"dy_ptr": f"*{dtype}", "winner_ptr": "*i16", "dx_ptr": f"*{wide}", "dw_ptr": f"*{wide}"}
    signature |= dict.fromkeys([*CONVOLUTION, *(f"stride_y{x}" for x in "bopq")], "i32")
    config = dict(convolution.SCATTER.default({}))
    warps = config.pop("num_warps")
    flags = {"NEEDS_X": True, "NEEDS_W": True} | WINDOW
    return convolution._tropical_conv2d_scatter_kernel, signature, flags | config, warps


CHAIN = (Shape(1, 64, 3, 9), Shape(4, 8, 16, 9), Shape(1, 10, 32, 1))


def chain(name: str, dtype: str):
    """A kernel of the step on path values, for a grouped convolution between another one and a Linear layer."""
    kernel = getattr(path_step, f"_path_{name}_kernel")
    types: dict[str, Any] = dict.fromkeys(["weights", "grads", "momenta"], (f"*{dtype}",) * len(CHAIN))
    types |= dict.fromkeys([x for x in kernel.arg_names if x.endswith("_ptr")], f"*{dtype}")
    types |= {"kept_ptr": "*i64"} | dict.fromkeys(["lr", "momentum", "decay"], "fp32")
    config = dict((path_step.FLOWS if name == "flows" else path_step.MOVE).default({}))
    warps = config.pop("num_warps")
    rows, columns = zip(*(path_step.sums(shape, config) for shape in CHAIN), strict=True)
    starts = {"ROW_SUMS": rows, "COLUMN_SUMS": columns}
    starts |= {"SOURCES": [x.sources for x in CHAIN], "TARGETS": [x.targets for x in CHAIN]}
    constants: dict[str, Any] = {argument: path_step.starts(sizes) for argument, sizes in starts.items()}
    constants |= path_step.tiling(CHAIN, config["ROWS"], config["COLUMNS"])[1] | {"MOVING": True} | config
    types, constants = ({x: found[x] for x in kernel.arg_names if x in found} for found in (types, constants))
    return kernel, types, constants, warps


def iterations(name: str, dtype: str, loss="hinge"):
    """A kernel of the worst-sample iterations, at ten classes and with validation samples."""
    kernel = getattr(worst_sample, f"_{name}_kernel")
    types = dict.fromkeys(worst_sample.Run._fields, f"*{dtype}")
    types |= dict.fromkeys(("N", "training", "p", "q", "K", "blocks", "line"), "i32")
    types |= dict.fromkeys(
        ("y", "i", "j", "worst", "right", "lists", "finished", "route_k", "route_j", "route_i"), "*i32"
    )
    types |= dict.fromkeys(("journal", "times", "integers", "counters"), "*i64")
    types |= dict.fromkeys(("floats", "levels", "roots", "trace"), "*fp64")
    constants = {"HINGE": loss == "hinge", "POLYAK": True, "WATCHED": True, "CLASSES": 16}
    tuned = {"program": worst_sample.PROGRAM, "iteration": worst_sample.ITERATION}.get(name)
    if tuned:
        constants |= tuned.default({"loss": loss, "dtype": "torch.float64" if dtype == "fp64" else "torch.float32"})
    warps = constants.pop("num_warps", 4)
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    return kernel, {"run": worst_sample.Run(**types)}, constants, warps


LIST = ("nnz", "R", "C", "D", "stride_r", "stride_c", "stride_d")


def sparse_step(name: str, dtype: str, rule="sgd"):
    """A kernel of scatter_step on rows of 64 elements, or on elements where it knows nothing else."""
    wide = "fp64" if dtype == "fp64" else "fp32"
    config = dict(sparse.STEP.default({"dtype": "torch.float64" if dtype == "fp64" else "torch.float32"}))
    if name == "keys":
        config = dict(sparse.KEYS.default({}))
    warps = config.pop("num_warps")
    width = 1 if rule == "sgd" else 64
    kernel = getattr(sparse, f"_{name}_kernel")
    types = dict.fromkeys(["param_ptr", "values_ptr"], f"*{dtype}") | {"norm_ptr": "*fp64", "lr": "fp32"}
    types |= dict.fromkeys(["lr_ptr", "moment_ptr", "partial_ptr"], f"*{wide}")
    types |= dict.fromkeys(["row_ptr", "column_ptr", "order_ptr"], "*i64")
    types |= dict.fromkeys(["touched_ptr", "number_ptr", "key_ptr"], "*i32") | dict.fromkeys([*LIST, "total"], "i32")
    flags = {
        "RULE": rule,
        "LOG2_MOMENTUM": -0.152,
        "EPS": 1e-10,
        "HAS_COLUMNS": rule == "sgd",
        "HAS_LR": dtype == "fp64" or rule == "polyak",
    }
    flags |= {"COMPUTE": sparse.tl.float64 if dtype == "fp64" else sparse.tl.float32, "PIECE": sparse.PIECE}
    block = sparse.FEW if name == "few" else config.get("BLOCK") or config["ENTRIES"] // width
    flags |= {"BLOCK": block, "BLOCK_D": width}
    constants = {argument: value for argument, value in flags.items() if argument in kernel.arg_names}
    return kernel, {name: kind for name, kind in types.items() if name in kernel.arg_names}, constants, warps


def tournament(name: str, dtype: str, **flags):
    """A kernel of Tournament; `flags` as its own, beside those that every launch has."""
    kernel = getattr(trees, f"_tournament_{name}_kernel")
    types = dict.fromkeys(["leaf_ptr", "value_ptr", "new_ptr"], f"*{dtype}")
    types |= dict.fromkeys(["index_ptr", "position_ptr"], "*i64")
    sizes = ("n", "nodes", "children", "size", "level", "count", "touched", "of_position", "of_new")
    types |= dict.fromkeys(sizes, "i32")
    worst = -(2 ** (BITS[dtype] - 1)) if dtype.startswith("i") else float("-inf")
    flags |= {"LARGEST": True, "WORST": worst, "FAN": trees.FAN, "NO_INDEX": trees._NO_INDEX}
    return kernel, {name: kind for name, kind in types.items() if name in kernel.arg_names}, flags, 4


PATHS = ("P", "L", "stride_fb", "stride_pb", "stride_pp", "stride_pl")


def path_values(dtype: str, convolutions=False):
    signature = {"flat_ptr": f"*{dtype}", "paths_ptr": "*i64", "layers_ptr": "*i64", "values_ptr": f"*{dtype}"}
    signature |= dict.fromkeys(PATHS, "i32")
    config = dict(paths.FORWARD.default({}))
    warps = config.pop("num_warps")
    flags = {"FIELDS": paths.FIELDS, "CONVOLUTIONS": convolutions}
    return paths._path_values_fwd_kernel, signature, flags | config, warps


def path_values_backward(dtype: str, convolutions=False, add=True):
    signature = {f"{name}_ptr": f"*{dtype}" for name in ("dv", "flat", "dflat", "term")}
    signature |= dict.fromkeys(["paths_ptr", "layers_ptr", "edge_ptr"], "*i64")
    signature |= dict.fromkeys([*PATHS, "blocks", "n", "stride_vb", "stride_vp"], "i32")
    config = dict(paths.BACKWARD.default({}))
    del config["PROGRAMS"]
    warps = config.pop("num_warps")
    flags = {"ADD": add, "FIELDS": paths.FIELDS, "CONVOLUTIONS": convolutions}
    return paths._path_values_bwd_kernel, signature, flags | config, warps


def elementwise(dtype: str, op: Elementwise, dimensions: int, numbers: int = 0):
    """The launch of an elementwise op on tensors that are walked in so many dimensions, then numbers."""
    tensors = len(op.names) - numbers
    signature: dict[str, Any] = {"operands": (f"*{dtype}",) * tensors + ("fp32",) * numbers, "out_ptr": f"*{dtype}"}
    signature |= {"size": "i32", "sizes": ("i32",) * dimensions, "strides": ("i32",) * dimensions * (len(op.names) + 1)}
    config = dict(op.by_triton.default({}))
    warps = config.pop("num_warps")
    compute = launch.tl.float64 if dtype == "fp64" else launch.tl.float32
    flags = {"FORMULA": op.formula, "IS_NUMBER": (False,) * tensors + (True,) * numbers, "COMPUTE": compute}
    return launch._elementwise_kernel, signature, flags | {"WIDE": False} | config, warps


COMPILED = {
    "forward": forward,
    "forward-small": lambda dtype: forward(dtype, SMALL),
    "forward-min": lambda dtype: forward(dtype, minimum=True),
    "forward-product": lambda dtype: forward(dtype, product=True),
    "forward-blocks": lambda dtype: forward(dtype, keep="block"),
    "forward-blocks-min": lambda dtype: forward(dtype, keep="block", minimum=True),
    "forward-blocks-narrow": lambda dtype: forward(dtype, PROBLEM | {"N": 64}, keep="block"),
    "forward-blocks-narrow-ignore": lambda dtype: forward(
        dtype, PROBLEM | {"N": 64}, keep="block", product=True, ignore_nan=True
    ),
    "forward-blocks-ignore": lambda dtype: forward(dtype, keep="block", product=True, ignore_nan=True),
    "forward-winners": lambda dtype: forward(dtype, SMALL, keep="k"),
    "forward-winners-ignore": lambda dtype: forward(dtype, SMALL, keep="k", ignore_nan=True),
    "scatter": scatters,
    "scatter-product": lambda dtype: scatters(dtype, product=True),
    "fixed-scatter": lambda dtype: scatters(dtype, fixed=True),
    "fixed-scatter-product": lambda dtype: scatters(dtype, product=True, fixed=True),
    "fixed-largest": largest,
    "fixed-back": from_fixed_point,
    "log": log_forward,
    "log-backward": log_backward,
    "forward-conv2d": convolve,
    "forward-conv2d-winners": lambda dtype: convolve(dtype, minimum=True, winners=True, ignore_nan=dtype[0] != "i"),
    "forward-conv2d-depthwise": lambda dtype: convolve(dtype, filters=1, winners=True),
    "conv2d-scatter": convolve_back,
    "chain-flows": functools.partial(chain, "flows"),
    "chain-move": functools.partial(chain, "move"),
    "iterations-program": lambda dtype: iterations("program", dtype),
    "iterations-program-entropy": lambda dtype: iterations("program", dtype, "cross_entropy"),
    "iterations": lambda dtype: iterations("iteration", dtype),
    "iterations-entropy": lambda dtype: iterations("iteration", dtype, "cross_entropy"),
    "iterations-advance": lambda dtype: iterations("advance", dtype),
    "iterations-advance-entropy": lambda dtype: iterations("advance", dtype, "cross_entropy"),
    "tournament-build": lambda dtype: tournament("build", dtype, LEAVES=True, NODES=16),
    "tournament-build-nodes": lambda dtype: tournament("build", dtype, LEAVES=False, NODES=16),
    "tournament-update": lambda dtype: tournament("update", dtype, LEVELS=4, BLOCK=32),
    "step-few": lambda dtype: sparse_step("few", dtype),
    "step-few-momentum": lambda dtype: sparse_step("few", dtype, "momentum"),
    "step-atomic": lambda dtype: sparse_step("atomic", dtype),
    "step-keys": lambda dtype: sparse_step("keys", dtype),
    "step-pieces": lambda dtype: sparse_step("pieces", dtype, "adagrad"),
    "step-sorted": lambda dtype: sparse_step("sorted", dtype),
    "step-sorted-norm": lambda dtype: sparse_step("sorted", dtype, "norm"),
    "step-sorted-momentum": lambda dtype: sparse_step("sorted", dtype, "momentum"),
    "step-few-polyak": lambda dtype: sparse_step("few", dtype, "polyak"),
    "step-sorted-polyak": lambda dtype: sparse_step("sorted", dtype, "polyak"),
    "step-sorted-adagrad": lambda dtype: sparse_step("sorted", dtype, "adagrad"),
    "soft-threshold": lambda dtype: elementwise(dtype, SOFT_THRESHOLD, 1),
    "soft-threshold-number": lambda dtype: elementwise(dtype, SOFT_THRESHOLD, 1, numbers=dtype != "fp64"),
    "soft-threshold-broadcast": lambda dtype: elementwise(dtype, SOFT_THRESHOLD, 3),
    "soft-threshold-backward": lambda dtype: elementwise(dtype, SOFT_THRESHOLD_BACKWARD, 2),
    "path-values": path_values,
    "path-values-convolutions": lambda dtype: path_values(dtype, convolutions=True),
    "path-values-backward": path_values_backward,
    "path-values-backward-convolutions": lambda dtype: path_values_backward(dtype, convolutions=True),
    "path-values-backward-ordered": lambda dtype: path_values_backward(dtype, convolutions=True, add=False),
}


FLOATS = ("fp32", "fp16", "bf16", "fp64")
ONLY = {  # the dtypes of those that do not take all: integers have no gradient, float64 no fixed point
    **dict.fromkeys(("scatter", "log", "conv2d", "step", "soft"), FLOATS),
    "fixed": ("fp32", "fp16", "bf16"),
    "iterations": ("fp32", "fp64"),
    "path": ("fp32", "fp64"),
    "chain": ("fp32",),
}


@functools.cache
def costs(dtype: str, names: tuple[str, ...], capabilities: tuple[int | str, ...]) -> dict[str, dict[str, Any]]:
    """The machine code of each kernel on each capability, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, dtype, ",".join(names), ",".join(map(str, capabilities))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def names_for(dtype: str) -> tuple[str, ...]:
    families = {name: name.split("-")[0] for name in COMPILED}
    return tuple(name for name, family in families.items() if dtype in ONLY.get(family, DTYPES))


# of MI300: waves of 64; of RX 7900: of 32, so that a thread has twice the outputs and products of fp64 and int32 spill
AMD = ("gfx942", "gfx1100")
_PATHS = ("iterations", "iterations-advance", "chain-flows", "chain-move")
_PATHS += ("path-values", "path-values-backward", "path-values-backward-ordered")
_SOFT = ("soft-threshold", "soft-threshold-number", "soft-threshold-broadcast", "soft-threshold-backward")
_CONVOLUTIONS = ("forward-conv2d", "forward-conv2d-depthwise", "conv2d-scatter")
_STEPS = ("step-few", "step-atomic", "step-keys", "step-pieces", "step-sorted-momentum")
_TREES = ("tournament-build", "tournament-build-nodes", "tournament-update")
_HALVES = ("forward-small", "forward-conv2d-winners", "forward-conv2d-depthwise")
_HALVES += ("step-few-momentum", "step-sorted-adagrad", "step-sorted-norm", *_SOFT)
QUICK = [  # a process each
    ("fp32", ("forward", "forward-blocks", "scatter", "fixed-scatter", "log", "log-backward"), (80, 90, 100)),
    ("fp16", ("forward-winners", "fixed-scatter-product", "fixed-largest", "fixed-back"), (90,)),
    ("fp32", _PATHS + _SOFT, (80, 90, 100)),
    ("fp32", _CONVOLUTIONS + _STEPS + _TREES, (90,)),
    ("bf16", _HALVES, (90,)),
    ("i16", ("forward-blocks",), (90,)),
    ("i8", ("forward-conv2d-winners", "tournament-update"), (90,)),
    ("fp32", ("forward", "forward-blocks", "scatter", "fixed-scatter", "forward-conv2d-winners"), AMD),
]


@pytest.mark.parametrize(
    ("dtype", "names", "capabilities"),
    [
        *QUICK,
        *(pytest.param(dtype, names_for(dtype), (80, 90, 100, AMD[0]), marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_default_configs_compile_without_spills(dtype, names, capabilities):
    found = costs(dtype, names, capabilities)
    assert len(found) == len(names) * len(capabilities)
    assert not {name: cost["stack"] for name, cost in found.items() if cost["stack"]}
    assert all(0 < cost["registers"] <= 256 for cost in found.values())


@pytest.mark.parametrize("name", ["forward", "forward-blocks"])
def test_a_step_is_one_addition_and_one_maximum(name):
    """Of fp32, which propagates NaN; loads, addresses and the k-block add little."""
    loop = costs(*QUICK[0])[f"{name}-sm_90"]["loop"]
    *_, config, warps = COMPILED[name]("fp32")
    unrolled = 8 * config["BLOCK_M"] * config["BLOCK_N"] // (32 * warps)
    assert loop["FADD"] == unrolled
    assert loop["FMNMX.NAN"] == unrolled
    assert sum(loop.values()) <= 2.6 * unrolled


def test_a_gradient_of_paths_is_one_relaxed_addition_an_edge():
    code = costs(*QUICK[2])["path-values-backward-sm_90"]["instructions"]
    assert sum(count for opcode, count in code.items() if opcode.startswith("RED")) == 1
    assert not any(opcode.startswith(("MEMBAR", "ATOM")) for opcode in code)


def test_atomic_additions_wait_for_nothing():
    """Relaxed and without a result: a reduction that the multiprocessor hands to the cache and forgets."""
    for name in ("scatter", "fixed-scatter"):
        code = costs(*QUICK[0])[f"{name}-sm_90"]["instructions"]
        assert sum(count for opcode, count in code.items() if opcode.startswith("RED")) >= 4
        assert not any(opcode.startswith(("MEMBAR", "ATOM")) for opcode in code)


def test_amd_adds_without_loops_of_compare_and_swap():
    """On gfx942 alone: for gfx1100 Triton knows no atomic addition of floats. There only the fixed point's is one."""
    found = costs(*QUICK[-1])
    for name, addition in (
        ("scatter-gfx942", "_f32"),
        ("fixed-scatter-gfx942", "_x2"),
        ("fixed-scatter-gfx1100", "_u64"),
    ):
        assert f"global_atomic_add{addition}" in found[name]["instructions"]
    assert not [opcode for opcode in found["scatter-gfx942"]["instructions"] if "cmpswap" in opcode]


def test_amd_selects_by_one_maximum_a_step():
    """And by a comparison and a move, as these architectures have no maximum that keeps a NaN."""
    *_, config, warps = COMPILED["forward"]("fp32")
    loop = costs(*QUICK[-1])["forward-gfx942"]["loop"]
    steps = 8 * config["BLOCK_M"] * config["BLOCK_N"] // (64 * warps)
    assert 2 * loop["v_pk_add_f32"] == loop["v_cmp_o_f32_e64"] == steps
    assert steps <= loop["v_max_f32_e32"] <= 1.2 * steps


@pytest.mark.parametrize(("dtype", "names", "capabilities"), QUICK[:2], ids=["fp32", "fp16"])
def test_addresses_are_computed_in_64_bits(dtype, names, capabilities):
    """A product in 32 bits is a scalar: of tile counts, which number programs, or of blocks and their size."""
    for name in names:
        if name.startswith("log"):
            continue
        ir = costs(dtype, names, capabilities)[f"{name}-sm_90"]["ir"]
        products = re.findall(r"arith\.muli (%\w+), (%\w+) : (.*?) loc", ir)
        arguments = set(re.findall(r"(%\w+): (?:!tt\.ptr<\w+>|i\d+)", ir.split("tt.func", 1)[1].split("{\n", 1)[0]))
        assert any("i64" in kind for *_, kind in products)
        for *factors, kind in products:
            assert kind in ("i32", "i64") or kind.endswith("xi64>"), f"{name}: {factors} are {kind}"
            assert kind != "i32" or not arguments.intersection(factors), f"{name}: {factors} are multiplied in {kind}"


@pytest.mark.skipif(not backend.interpreted(), reason="Triton compiles here: no kernel is interpreted")
def test_an_interpreted_kernel_is_refused():
    with pytest.raises(RuntimeError, match="is not jitted: unset TRITON_INTERPRET"):
        ahead_of_time.compile(by_triton._tropical_matmul_fwd_kernel, {}, {}, 90)


def main(dtype: str, names: str, capabilities: str) -> None:
    found = {}
    for name in names.split(","):
        for capability in capabilities.split(","):
            kernel, signature, constants, warps = COMPILED[name](dtype)
            nvidia = capability.isdigit()
            code = ahead_of_time.compile(kernel, signature, constants, int(capability) if nvidia else capability, warps)
            found[f"{name}-sm_{capability}" if nvidia else f"{name}-{capability}"] = vars(code) | {
                "instructions": dict(code.instructions),
                "loop": dict(code.loop),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
