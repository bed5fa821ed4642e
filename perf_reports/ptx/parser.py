"""Reads the text of PTX: instructions with their registers numbered, labels, parameters, and lines of source.

Source: NVIDIA, Parallel Thread Execution ISA, "Syntax".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .faults import UnknownInstruction
from .instruction import Instruction

_STATEMENT = re.compile(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?(\w+)"
)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]+)"(?:\s+"([^"]+)")?')
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_LABEL = re.compile(r"([$\w]+):")
SPECIAL = (
    "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z",
    "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid",
)  # fmt: skip


@dataclass
class Program:
    """The only kernel of a PTX text."""

    name: str
    parameters: list[tuple[str, str]]  # type and name
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # -> the instruction that follows
    registers: dict[str, int] = field(default_factory=lambda: {name: at for at, name in enumerate(SPECIAL)})
    widths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPECIAL, 32))  # bits; 1 of a predicate
    shared: dict[str, int] = field(default_factory=dict)  # variable -> its address in the shared memory of a block
    static_shared: int = 0  # bytes of the variables whose size the text tells

    def number(self, register: str) -> int:
        """The place of a register; a name that was not seen before gets one."""
        return self.registers.setdefault(register, len(self.registers))

    def width(self, register: str) -> int:
        """The bits of a register: those of its declaration."""
        return self.widths.get(register) or self.widths.get(register.rstrip("0123456789"), 32)


def parse(text: str) -> Program:
    """Read the kernel of a PTX text.

    Raises:
        ValueError: the text has no kernel, or several.
        UnknownInstruction: a statement that is none, or a function beside the kernel.
    """
    entries = re.findall(r"\.entry\s+([$\w]+)", text)
    if len(entries) != 1:
        raise ValueError(
            f"ptx: the text has {len(entries)} kernels ({', '.join(entries) or 'none'}); expected the PTX of one"
        )
    head, _, tail = text.partition(".entry")
    signature = tail[: tail.index("{\n")] if "{\n" in tail else tail
    program = Program(entries[0], _PARAMETER.findall(signature))
    _shared_variables(program, head)
    files = {number: PurePosixPath(second or first).name for number, first, second in _FILE.findall(text)}
    start = text.index("{\n", text.index(".entry")) + 2
    source, pending, depth = "", "", 0
    for number, line in enumerate(text[start:].split("\n"), text.count("\n", 0, start) + 1):
        line = line.partition("//")[0].strip()
        depth += line.count("{") - line.count("}")
        if line.startswith("$L__func_end") or depth < 0:
            break
        if location := _LOCATION.match(line):
            source = f"{files.get(location[1], location[1])}:{location[2]}" if location[2] != "0" else source
        elif label := _LABEL.fullmatch(line):
            program.labels[label[1]] = len(program.instructions)
        elif line.startswith(".") and not line.startswith((".reg", ".shared", ".local")):
            continue  # directives that say nothing about what is computed: .pragma, .file
        else:
            # inline assembly has several in a line; a statement may take several lines
            *whole, pending = f"{pending} {line}".split(";")
            for statement in whole:
                _statement(
                    program, statement.strip(" {}\t") if _is_scope(statement) else statement.strip(), number, source
                )
            if not pending.strip(" {}\t"):
                pending = ""
    return program


def _is_scope(statement: str) -> bool:
    """Whether braces around it open or close a scope, and hold no vector of operands."""
    return statement.count("{") != statement.count("}") or statement.strip().startswith("{")


def _shared_variables(program: Program, text: str) -> None:
    for align, kind, name, count in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)\[(\d*)\]", text):
        at = -(-program.static_shared // int(align)) * int(align)
        program.shared[name] = at
        program.static_shared = at + int(count or 0) * (int(re.sub(r"\D", "", kind)) // 8)


def _statement(program: Program, statement: str, number: int, source: str) -> None:
    if not statement:
        return
    if declared := _REGISTERS.match(statement):
        bits = 1 if declared[1] == "pred" else int(re.sub(r"\D", "", declared[1].partition("x")[0]))
        for name in declared[2].split(","):
            program.widths[name.strip().partition("<")[0]] = bits
        return
    parts = _STATEMENT.match(statement)
    if parts is None:
        place = Instruction(program.name, number, source, statement, "", ())
        raise UnknownInstruction("this statement cannot be read", place)
    text = re.sub(r"\s+", " ", statement)
    operands = tuple(_OPERAND.findall(parts[4]))
    program.instructions.append(
        Instruction(program.name, number, source, text, parts[3], operands, parts[2] or "", parts[1] == "!")
    )
