"""What a config is stored under: a source with all it is made of, and sizes rounded up."""

import shutil
from pathlib import Path

import pytest

from tropigrad.autotune import Tuned, reload, source_hash
from tropigrad.autotune.keys import bucket, with_included

ROOT = Path(__file__).resolve().parents[2]


def test_a_source_is_hashed_with_what_it_includes(tmp_path):
    (tmp_path / "kernel.cpp").write_text('#include <vector>\n  #  include "part.hpp"\nint x;\n')
    (tmp_path / "part.hpp").write_text("int y;\n")
    before = source_hash(tmp_path / "kernel.cpp")
    (tmp_path / "part.hpp").write_text("int z;\n")
    reload()
    assert source_hash(tmp_path / "kernel.cpp") != before


def test_a_source_is_listed_with_what_it_includes_each_file_once(tmp_path):
    texts = {
        "kernel.cpp": '#include "left.hpp"\n#include "parts/right.hpp"\n#include "nowhere.hpp"\n',
        "left.hpp": '#include "parts/shared.hpp"\n',
        "parts/right.hpp": '#include "shared.hpp"\n#include "../left.hpp"\n#include "right.hpp"\n',
        "parts/shared.hpp": "int x;\n",
        "beside.hpp": "int y;\n",
    }
    (tmp_path / "parts").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    listed = [str(path.relative_to(tmp_path)) for path in with_included(tmp_path / "kernel.cpp")]
    assert listed == ["kernel.cpp", "left.hpp", "parts/right.hpp", "parts/shared.hpp"]


KERNEL = """
from __future__ import annotations
from ...stub import tl, triton
from .. import machinery
from ..shared.parts import part
from . import constants, sizes
from .definition import LEVELS, WIDTH, oracle
from .host import launch
from .middle import PASSED_ON

_LEVELS = tl.constexpr(LEVELS)
DECLARED = Tuned("op.triton", Space({"BLOCK": (16, 32)}))

@triton.jit
def _kernel(x_ptr, BLOCK: tl.constexpr):
    part(x_ptr, _LEVELS, PASSED_ON, constants.MANY)

def forward(x):
    machinery.choose(WIDTH)
    return launch(_kernel, x, sizes.LARGEST, oracle)
"""
PACKAGE = {
    "stub.py": "try:\n    import triton.language as tl\nexcept ImportError:\n    tl = None\n",
    "kernels/machinery.py": "X = 1\n",
    "kernels/shared/parts.py": "from .rows import row\n@triton.jit(noinline=True)\ndef part(x): row(x)\nK = Tuned(1)\n",
    "kernels/shared/rows.py": "from ..op.kernel import forward\n@triton.jit\ndef row(x): ...\n",  # a circle
    "kernels/op/kernel.py": KERNEL,
    "kernels/op/constants.py": "MANY = 3\n",
    "kernels/op/sizes.py": "LARGEST = 9\n",
    "kernels/op/definition.py": "LEVELS, OTHERS = range(2)\nWIDTH = 5\ndef oracle(): ...\n",
    "kernels/op/host.py": "def launch(*x): ...\n",
    "kernels/op/middle.py": "from .far import PASSED_ON\n",
    "kernels/op/far.py": "PASSED_ON: int = 7\n",
}


@pytest.fixture
def package(tmp_path) -> Path:
    for name, text in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def hash_after(source: Path, edited: Path, old: str = "", new: str = "# edited\n") -> str:
    text = edited.read_text()
    edited.write_text(text.replace(old, new) if old else text + new)
    reload()
    return source_hash(source)


@pytest.mark.parametrize(
    "name",
    [
        "kernels/op/kernel.py",
        "kernels/shared/parts.py",  # another folder's jitted function
        "kernels/shared/rows.py",  # which calls this one
        "kernels/op/definition.py",  # a constant that jitted code reads under another name
        "kernels/op/constants.py",  # likewise, by its module
        "kernels/op/far.py",  # likewise, passed on by a third file
    ],
)
def test_a_source_is_hashed_with_what_its_jitted_code_is_made_of(package, name):
    source = package / "kernels/op/kernel.py"
    before = source_hash(source)
    assert hash_after(source, package / name) != before


@pytest.mark.parametrize("name", ["stub.py", "kernels/machinery.py", "kernels/op/sizes.py", "kernels/op/host.py"])
def test_what_the_host_alone_imports_is_no_part_of_a_source(package, name):
    source = package / "kernels/op/kernel.py"
    before = source_hash(source)
    assert hash_after(source, package / name) == before


@pytest.mark.parametrize("name", ["kernels/op/kernel.py", "kernels/shared/parts.py"])
def test_a_declaration_is_no_part_of_a_source_wherever_it_stands(package, name):
    source = package / "kernels/op/kernel.py"
    before = source_hash(source)
    assert hash_after(source, package / name, "Tuned(", "Tuned(2, ") == before


@pytest.mark.parametrize(
    ("source", "edited", "changes"),
    [
        ("kernels/tropical_matmul/by_triton.py", "kernels/mathematics/semiring_in_triton.py", True),
        ("kernels/tropical_winners_scatter/by_triton.py", "kernels/mathematics/semiring_in_triton.py", True),
        ("kernels/tropical_matmul/by_triton.py", "kernels/tropical_matmul/refine.py", True),
        ("kernels/tropical_matmul/by_gluon.py", "kernels/tropical_matmul/gluon_tile.py", True),
        ("kernels/log_matmul/by_triton.py", "kernels/mathematics/semiring_in_triton.py", True),
        ("kernels/tropical_conv2d/by_triton.py", "kernels/mathematics/semiring_in_triton.py", True),
        ("kernels/tournament/by_triton.py", "kernels/tournament/definition.py", True),
        ("kernels/tropical_matmul/by_triton.py", "kernels/mathematics/semiring.py", False),
        ("kernels/tropical_matmul/by_triton.py", "kernels/tropical_matmul/definition.py", False),
        ("kernels/log_matmul/by_triton.py", "kernels/runtime/dispatch.py", False),
        ("kernels/log_matmul/by_triton.py", "kernels/runtime/backend.py", False),
        ("kernels/tropical_matmul/by_triton.py", "autotune/__init__.py", False),
        ("kernels/tropical_matmul/by_triton.py", "triton_or_stub.py", False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else "-".join(Path(value).parts[-2:]),
)
def test_the_kernels_are_hashed_with_their_parts(tmp_path, source, edited, changes):
    """On a copy of the package."""
    for folder in ("kernels", "autotune"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "src/tropigrad/triton_or_stub.py", tmp_path)
    before = source_hash(tmp_path / source)
    assert (hash_after(tmp_path / source, tmp_path / edited) != before) == changes


def test_a_changed_kernel_forgets_its_configs(tuned):
    before = tuned.key({"M": 5})
    other = Tuned("op.test", tuned.space, tuned.default, source=Path(__file__))
    assert other.key({"M": 5}) != before


def test_buckets_round_sizes_up_and_leave_the_rest():
    assert bucket({"M": 1, "N": 65, "K": 0, "dtype": "fp32", "winners": True}) == {
        "M": 1,
        "N": 128,
        "K": 0,
        "dtype": "fp32",
        "winners": True,
    }
