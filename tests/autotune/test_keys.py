"""What a config is stored under: a source with all it is made of, and sizes rounded up."""

from pathlib import Path

from tropigrad.autotune import Tuned, reload, source_hash
from tropigrad.autotune.keys import bucket


def test_a_source_is_hashed_with_what_it_includes(tmp_path):
    (tmp_path / "kernel.cpp").write_text('#include <vector>\n  #  include "part.hpp"\nint x;\n')
    (tmp_path / "part.hpp").write_text("int y;\n")
    before = source_hash(tmp_path / "kernel.cpp")
    (tmp_path / "part.hpp").write_text("int z;\n")
    reload()
    assert source_hash(tmp_path / "kernel.cpp") != before


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
