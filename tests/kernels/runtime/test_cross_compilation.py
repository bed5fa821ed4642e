"""The C++ kernels compile for aarch64, whose vectors are NEON's, where a cross compiler is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

import tropigrad.kernels
from tropigrad.kernels.runtime.native import build

COMPILER = shutil.which("aarch64-linux-gnu-g++")
KERNELS = Path(str(tropigrad.kernels.__file__)).resolve().parent
FLOAT = [(path, "float") for path in sorted(KERNELS.rglob("by_cpp.cpp"))]
OTHERS = [
    (KERNELS / "tropical_matmul/by_cpp.cpp", element) for element in ("double", "Half", "int32_t", "int16_t", "int8_t")
]


@pytest.mark.skipif(COMPILER is None, reason="no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.parametrize(
    ("source", "element"), [pytest.param(*case, id=f"{case[0].parent.name}-{case[1]}") for case in FLOAT + OTHERS]
)
def test_a_kernel_compiles_for_neon(source, element):
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    done = subprocess.run(
        [str(COMPILER), *flags, f"-DELEMENT={element}", "-fsyntax-only", str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
