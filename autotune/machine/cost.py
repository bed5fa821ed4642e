"""Predicts the cost of a launch from its machine code: an order to try configs in, and what limits the one taken.

Per iteration of the inner loop a block of T threads keeps pipe p busy for n_p T / lanes_p cycles, and the schedulers
for n T / 128. The largest of these, times the iterations, times the blocks that take turns on a multiprocessor, is the
time; so is the least traffic over the bandwidth, where that is more. Lanes by compute capability: CUDA C++ Programming
Guide, "Arithmetic Instructions". The figures rank; they are no measurement, and nothing is chosen by them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..device import Fingerprint


@dataclass(frozen=True)
class MachineCode:
    """One kernel, compiled for one compute capability or AMD architecture."""

    capability: int | str  # 90 for sm_90; AMD's architecture, such as "gfx942"
    registers: int  # per thread
    stack: int  # bytes per thread; not 0 where registers were spilled
    shared: int  # bytes per block
    instructions: Mapping[str, int]  # opcode -> count in the listing
    loop: Mapping[str, int]  # the same for the longest loop that has no loop inside; empty where there is none
    ir: str  # Triton's own, with the kernel's names and types


@dataclass(frozen=True)
class Launch:
    """One kernel of a call."""

    code: MachineCode
    blocks: int
    threads: int  # of a block


@dataclass(frozen=True)
class Work:
    """The least that a call must do."""

    steps: int  # (m, n, k), or the op's own unit
    bytes: int  # each input read once, each output written once
    mix: str  # "add_max", ...


@dataclass(frozen=True)
class Prediction:
    """The time that the model gives, and what takes it."""

    seconds: float
    limiter: str
    figures: str = "nominal figures"  # that the limiter goes by, or "figures measured here", by what and when


@dataclass(frozen=True)
class Ceilings:
    """The most that a device was measured to do; nominal figures stand for what is missing."""

    steps: Mapping[str, float] = field(default_factory=dict)  # a second, of all units, by mix
    bandwidth: float | None = None  # bytes a second
    launch: float | None = None  # seconds of an empty kernel, one after another
    # GPU: float32 maxima a second; each is one instruction of the ALU pipe, so this measures the clock rate
    maxima: float | None = None
    origin: str = field(default="", compare=False)  # what measured them, and when


NOMINAL = Ceilings()
# opcode prefix -> pipe; what is in none of them costs its issue alone
_PIPES = {
    "FMA": ("FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "IMAD"),
    "ALU": (
        "FMNMX", "HMNMX2", "VIADDMNMX", "VIMNMX", "IMNMX", "FSETP", "HSETP2", "ISETP", "FSEL", "SEL",
        "IADD", "VIADD", "LOP3", "LEA", "SHF", "PRMT", "MOV",
    ),
    "special function": ("MUFU",),
    "double precision": ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"),
    "load and store": ("LDS", "STS", "LDG", "STG", "LDGSTS", "LD", "ST", "ATOM", "RED"),
}  # fmt: skip
_LANES = {"ALU": 64, "special function": 16, "double precision": 32, "load and store": 32}  # a clock, a multiprocessor
_FMA_LANES: dict[int | str, int] = {80: 64}  # 128 since
_ISSUE_LANES = 128
_SELECTING = ("FMNMX", "HMNMX2", "VIADDMNMX", "VIMNMX", "IMNMX", "DMNMX")  # one a step, packed: two
_REGISTER_FILE, _THREADS, _BLOCKS, _SHARED = 65536, 2048, 32, 164 << 10  # of a multiprocessor
_WARPS_TO_HIDE_LATENCY = 8

# where a device does not tell: clock in GHz, bandwidth in GB/s, of the first product of a compute capability
_NOMINAL = {"8.0": (1.41, 1555.0), "9.0": (1.98, 3350.0), "10.0": (1.9, 8000.0)}
_CPU_GHZ, _CPU_BANDWIDTH, _CPU_LANES = 3.0, 20.0, {"AVX512": 16, "AVX2": 8}
_CALL_S = {"cuda": 5e-6, "cpu": 1e-5}  # under which calling takes longer than computing


def predict(
    launches: Sequence[Launch], work: Work, environment: Fingerprint, ceilings: Ceilings = NOMINAL
) -> Prediction:
    """The time of a call on a GPU that makes these launches."""
    clock, bandwidth = _NOMINAL.get(environment.capability, _NOMINAL["9.0"])
    if ceilings.maxima:
        clock = ceilings.maxima / environment.units / _LANES["ALU"] / 1e9
    times = {"memory bandwidth": work.bytes / (ceilings.bandwidth or bandwidth * 1e9)}
    total = 0.0
    for launch in launches:
        cycles, pipe = _busiest(launch)
        resident = _resident(launch, environment.units)
        turns = -(-launch.blocks // (environment.units * resident))
        per_iteration = launch.threads * max(1, _steps(launch.code.loop))
        iterations = max(1.0, work.steps / launch.blocks / per_iteration)
        warps = resident * launch.threads / 32
        exposed = max(1.0, _WARPS_TO_HIDE_LATENCY / warps)
        seconds = turns * resident * iterations * cycles * exposed / clock / 1e9
        times[pipe] = times.get(pipe, 0.0) + seconds
        total += seconds
    limiter = max(times, key=lambda name: times[name])
    measured = ceilings.bandwidth if limiter == "memory bandwidth" else ceilings.maxima
    return Prediction(max(total, times["memory bandwidth"]), limiter, _figures(measured, ceilings))


def _figures(measured: float | None, ceilings: Ceilings) -> str:
    if not measured:
        return "nominal figures"
    return "figures measured here" + (f" ({ceilings.origin})" if ceilings.origin else "")


def roofline(work: Work, environment: Fingerprint, device: torch.device, ceilings: Ceilings = NOMINAL) -> Prediction:
    """The least time of any kernel on a device: steps, nominally at two instructions each, or bytes, or the call."""
    if device.type == "cuda":
        clock, bandwidth = _NOMINAL.get(environment.capability, _NOMINAL["9.0"])
        lanes = environment.units * _LANES["ALU"]
    else:
        clock, bandwidth = _CPU_GHZ, _CPU_BANDWIDTH
        lanes = environment.units * _CPU_LANES.get(environment.capability, 4)
    steps = ceilings.steps.get(work.mix)
    bounds = {  # the least time, and the figure that it goes by, where that was measured
        f"instructions ({work.mix.replace('_', ' + ')})": (work.steps / (steps or lanes * clock * 1e9), steps),
        "memory bandwidth": (work.bytes / (ceilings.bandwidth or bandwidth * 1e9), ceilings.bandwidth),
        "the call itself": (ceilings.launch or _CALL_S.get(device.type, 1e-5), ceilings.launch),
    }
    limiter = max(bounds, key=lambda name: bounds[name][0])
    seconds, measured = bounds[limiter]
    return Prediction(seconds, limiter, _figures(measured, ceilings))


def _busiest(launch: Launch) -> tuple[float, str]:
    """Cycles of one iteration of a block, and the pipe that takes them."""
    loop = launch.code.loop or launch.code.instructions
    lanes = {**_LANES, "FMA": _FMA_LANES.get(launch.code.capability, 128)}
    cycles = {"issue slots": sum(loop.values()) * launch.threads / _ISSUE_LANES}
    for pipe, names in _PIPES.items():
        count = sum(n * _width(opcode) for opcode, n in loop.items() if opcode.split(".")[0].startswith(names))
        cycles[f"{pipe} pipe"] = count * launch.threads / lanes[pipe]
    pipe = max(cycles, key=lambda name: cycles[name])
    return max(cycles[pipe], 1.0), pipe


def _width(opcode: str) -> int:
    """Words of 4 bytes that a load or a store moves per thread."""
    return 4 if ".128" in opcode else 2 if ".64" in opcode else 1


def _steps(loop: Mapping[str, int]) -> int:
    return sum(n * (2 if op.startswith("H") else 1) for op, n in loop.items() if op.split(".")[0] in _SELECTING)


def _resident(launch: Launch, units: int) -> int:
    """Blocks that a multiprocessor holds at a time."""
    by_registers = _REGISTER_FILE // max(1, launch.code.registers * launch.threads)
    by_shared = _SHARED // max(1, launch.code.shared)
    held = min(by_registers, by_shared, _THREADS // launch.threads, _BLOCKS, -(-launch.blocks // units))
    return max(1, held)
