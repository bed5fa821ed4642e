"""Reads machine code back: the opcodes of a kernel, and those of its longest inner loop.

nvdisasm takes a third of a second to start and milliseconds for a kernel, so many kernels are handed to one start of
it: their code, joined, as a raw binary. AMD's compiler gives a listing by itself.
"""

from __future__ import annotations

import collections
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ...triton_or_stub import triton

_INSTRUCTION_BYTES = 16  # of NVIDIA's, from compute capability 7.0 on
_NVIDIA = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Z0-9_.]+)?)(.*)")
_NVIDIA_BRANCH = re.compile(r"0x([0-9a-f]+)\s*;")
_AMD_OPCODE = re.compile(r"\t([a-z]+_\w+)")
_AMD_LABEL = re.compile(r"(\.LBB\w+):")
_AMD_BRANCH = re.compile(r"\bs_c?branch\w*\s+(\.LBB\w+)")


class Listing(NamedTuple):
    """Opcodes and how often they stand in the code."""

    instructions: Mapping[str, int]
    loop: Mapping[str, int]  # of the longest loop that has no loop inside; empty where there is none


def of_cubins(cubins: Sequence[bytes], capability: int) -> list[Listing]:
    """The listings of kernels for one compute capability.

    Raises:
        RuntimeError: nvdisasm failed, whose words the message has.
    """
    codes = [b"".join(_code(cubin)) for cubin in cubins]
    # Triton compiles for the features of one architecture alone ("a") from Hopper on
    architecture = f"SM{capability}{'a' if capability >= 90 else ''}"
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        text = tool("nvdisasm", "--binary", architecture, file.name)
    listings: list[list[tuple[str, int | None]]] = [[] for _ in cubins]
    ends = list(accumulate(len(code) for code in codes))
    at = 0
    for address, opcode, operands in _NVIDIA.findall(text):
        place = int(address, 16)
        while place >= ends[at]:
            at += 1
        branch = _NVIDIA_BRANCH.search(operands) if opcode.startswith("BRA") else None
        first = ends[at] - len(codes[at])
        target = (int(branch[1], 16) - first) // _INSTRUCTION_BYTES if branch else None
        listings[at].append((opcode, target))
    return [_listing(instructions) for instructions in listings]


def of_assembly(text: str) -> Listing:
    """The listing of a kernel for AMD, from its assembly."""
    instructions: list[tuple[str, str | None]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _AMD_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif opcode := _AMD_OPCODE.match(line):
            branch = _AMD_BRANCH.search(line)
            instructions.append((opcode[1], branch[1] if branch else None))
    return _listing([(opcode, labels.get(target) if target else None) for opcode, target in instructions])


def tool(name: str, *arguments: str) -> str:
    """The output of a tool of triton's wheel.

    Raises:
        RuntimeError: it failed; the message has its words.
    """
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ahead_of_time.compile: {name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _code(cubin: bytes) -> Iterator[bytes]:
    """The sections of an ELF file that hold code."""
    (headers,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + index * size) for index in range(count)]
    names = sections[names_at][4]
    for name, _, _, _, begin, length in sections:
        if cubin.startswith(b".text.", names + name):
            yield cubin[begin : begin + length]


def _listing(instructions: Sequence[tuple[str, int | None]]) -> Listing:
    """Counts instructions, each with the index of the one that it may jump to."""
    loops = [(target, end) for end, (_, target) in enumerate(instructions) if target is not None and target <= end]
    inner = [(start, end) for start, end in loops if not any(start <= other[0] and other[1] < end for other in loops)]
    start, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    opcodes = [opcode for opcode, _ in instructions]
    return Listing(collections.Counter(opcodes), collections.Counter(opcodes[start : end + 1]))
