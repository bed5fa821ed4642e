"""Small PTX programs, written by hand."""

import numpy as np
import pytest

from tropigrad.perf_reports import ptx

THREADS = 64


def text(body: str, parameters: int, shared: int = 0) -> str:
    """A kernel of parameters of 64 bits, in %rd0 and on; %r0 is the thread, %r100 the block, %rd9 = %rd0 + 4 thread."""
    lines = [f"ld.param.b64 %rd{i}, [f_param_{i}];" for i in range(parameters)]
    lines += [
        "mov.u32 %r0, %tid.x;",
        "mov.u32 %r100, %ctaid.x;",
        "mul.wide.u32 %rd8, %r0, 4;",
        "add.s64 %rd9, %rd0, %rd8;",
    ]
    lines += [line if line.endswith(":") else f"{line};" for line in map(str.strip, body.strip().splitlines()) if line]
    declared = ", ".join(f".param .u64 f_param_{i}" for i in range(parameters))
    variable = f".shared .align 16 .b8 buffer[{shared}];\n" if shared else ""
    registers = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<101>;\n.reg .b64 %rd<20>;\n"
    return f"{variable}.visible .entry f({declared})\n{{\n{registers}" + "\n".join(lines) + "\nret;\n}\n"


@pytest.fixture
def launch():
    """launch(body, *arguments): runs the lines of `body` on 64 threads a block."""

    def run(body: str, *arguments, blocks: int = 1, shared: int = 0, threads: int = THREADS, **options) -> None:
        ptx.run(text(body, len(arguments), shared), arguments, blocks, threads, **options)

    return run


@pytest.fixture
def out():
    return np.zeros(THREADS, np.int32)
