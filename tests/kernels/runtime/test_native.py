"""Compiling at first use: cached, whole or not at all, and never fatal."""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from tropigrad.kernels.runtime import native
from tropigrad.kernels.runtime.native import build, libraries

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'

pytestmark = pytest.mark.skipif(
    bool(native.why_no_compiler()), reason=native.why_no_compiler() or "there is a compiler"
)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and no memory of earlier compilers, libraries and warnings."""
    caches = (build._compiler, build.kernel_library, build._private_folder, native.warn_of_slower_path)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def built(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "native").iterdir())


def answer(loaded: ctypes.CDLL | None) -> int:
    assert loaded is not None
    return loaded.answer()


def test_a_library_is_compiled_once_per_definition(source, tmp_path):
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert answer(native.library(source, "ANSWER=43")) == 43
    before = [(path, path.stat().st_mtime_ns) for path in built(tmp_path)]
    assert len(before) == 2
    build.kernel_library.cache_clear()
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert [(path, path.stat().st_mtime_ns) for path in built(tmp_path)] == before


def test_a_changed_source_is_another_library(source, tmp_path):
    assert answer(native.library(source, "ANSWER=1")) == 1
    build.kernel_library.cache_clear()
    source.write_text(SOURCE.replace("ANSWER;", "ANSWER + 1;"))
    assert answer(native.library(source, "ANSWER=1")) == 2
    assert len(built(tmp_path)) == 2


def test_a_changed_file_that_is_included_makes_another_library(tmp_path):
    source, part = tmp_path / "whole.cpp", tmp_path / "part.hpp"
    (tmp_path / "between.hpp").write_text('#include "part.hpp"\n')
    source.write_text('#include "between.hpp"\nextern "C" int answer() { return PART; }\n')
    part.write_text("#define PART 1\n")
    assert answer(native.library(source)) == 1
    build.kernel_library.cache_clear()
    part.write_text("#define PART 2\n")
    assert answer(native.library(source)) == 2
    assert len(built(tmp_path)) == 2


def test_a_file_that_is_included_may_add_as_native_hpp_does(tmp_path):
    source, part = tmp_path / "whole.cpp", tmp_path / "part.hpp"
    for adding, text in ((False, "int x = PLUS;\n"), (True, "int x = Plus::of(1, 2);\n")):
        part.write_text(text)
        source.write_text(f'#include "{native.HEADER}"\n#include "part.hpp"\n')
        native.has_two_sums.cache_clear()
        assert native.has_two_sums(source) == adding


def test_an_included_file_that_is_not_there_is_named(tmp_path):
    source = tmp_path / "whole.cpp"
    source.write_text('#include "nowhere.hpp"\n')
    with pytest.warns(RuntimeWarning, match=r"whole\.cpp did not compile: .*nowhere\.hpp"):
        assert native.library(source) is None


def test_the_cache_folder_is_private(source, tmp_path):
    native.library(source, "ANSWER=1")
    assert (tmp_path / "cache" / "native").stat().st_mode & 0o777 == 0o700


def test_processes_that_build_at_once_all_succeed(source, tmp_path):
    program = (
        "import sys, pathlib; from tropigrad.kernels.runtime import native\n"
        "raise SystemExit(native.library(pathlib.Path(sys.argv[1]), 'ANSWER=42').answer() - 42)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(source)]
    runs = [subprocess.Popen(command) for _ in range(4)]
    assert [run.wait(timeout=120) for run in runs] == [0] * 4
    assert len(built(tmp_path)) == 1  # nothing unfinished is left


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-40] + b"\x90" + whole[-39:]],
    ids=["empty", "truncated", "one byte flipped"],
)
def test_a_damaged_library_is_built_again(source, tmp_path, damage):
    native.library(source, "ANSWER=42")
    (path,) = built(tmp_path)
    whole = path.read_bytes()
    path.unlink()  # the file in use keeps its own content
    path.write_bytes(damage(whole))
    build.kernel_library.cache_clear()
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert ctypes.CDLL(build._intact(path)).answer() == 42


def test_an_error_in_the_source_is_quoted_once(source):
    source.write_text("this is no C++\n")
    with pytest.warns(RuntimeWarning, match=r"slower path: answer\.cpp did not compile: .*error") as caught:
        assert native.library(source) is None
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library(source) is None


def test_without_a_compiler_there_is_a_reason_and_one_warning(source, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler found" in native.why_no_compiler()
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler") as caught:
        assert [native.library(source, f"ANSWER={n}") for n in (1, 2)] == [None, None]
    assert len(caught) == 1


@pytest.mark.parametrize("cxx", ["/nowhere/c++", "false", "sh -c 'exit 3'", "g++ 'unclosed"])
def test_a_bad_cxx_is_named(source, monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    assert repr(cxx) in native.why_no_compiler()
    with pytest.warns(RuntimeWarning, match="CXX is"):
        assert native.library(source, "ANSWER=1") is None


def test_cxx_may_carry_arguments(source, monkeypatch):
    compiler = build._compiler("", os.environ["PATH"])
    assert isinstance(compiler, native.Compiler)
    monkeypatch.setenv("CXX", f"{compiler.command[0]} -DANSWER=7")
    assert answer(native.library(source)) == 7


def test_a_cache_folder_that_is_a_file_is_left_alone(source, tmp_path):
    (tmp_path / "cache").write_text("mine")
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert (tmp_path / "cache").read_text() == "mine"
    assert native.cache_folder() == build._private_folder()


def test_a_folder_that_others_can_write_to_is_not_trusted(source, tmp_path):
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted(source, tmp_path):
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 12345, 12345)
    assert answer(native.library(source, "ANSWER=42")) == 42
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root writes to read-only folders too")
def test_a_read_only_folder_is_passed_over(source, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    assert answer(native.library(source, "ANSWER=42")) == 42


def test_the_private_folder_goes_with_its_process():
    command = [sys.executable, "-c", "from tropigrad.kernels.runtime import native; print(native.cache_folder())"]
    environment = os.environ | {"TROPIGRAD_CACHE_DIR": os.devnull}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).name.startswith("tropigrad-native-")
    assert not Path(run.stdout.strip()).exists()


def test_a_forked_process_leaves_its_parents_private_folder_alone():
    """Also where it ends as a program does, by sys.exit; it has a folder of its own."""
    program = (
        "import os, sys\n"
        "from tropigrad.kernels.runtime import native\n"
        "print(native.cache_folder(), flush=True)\n"
        "if not (child := os.fork()):\n"
        "    print(native.cache_folder(), flush=True)\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert native.cache_folder().is_dir(), 'the child has removed it'\n"
    )
    environment = os.environ | {"TROPIGRAD_CACHE_DIR": os.devnull}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    parents, childs = run.stdout.split()
    assert parents != childs
    assert not Path(parents).exists()
    assert not Path(childs).exists()


def slow_compiler(folder: Path) -> Path:
    """A compiler that writes its process to `<itself>.pid` and compiles once `<itself>.go` is there."""
    real = build._compiler("", os.environ["PATH"])
    assert isinstance(real, native.Compiler)
    compiler = folder / "slow++"
    compiler.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo slow; exit; fi\necho $$ > "$0.new"; mv "$0.new" "$0.pid"\n'
        f'while [ ! -e "$0.go" ]; do sleep 0.02; done\nexec {real.command[0]} "$@"\n'
    )
    compiler.chmod(0o755)
    return compiler


def wait_for(path: Path) -> str:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.02)
    return path.read_text()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_forked_process_that_exits_leaves_its_parents_compilation_alone(source, tmp_path):
    compiler = slow_compiler(tmp_path)
    program = (
        "import os, sys, threading, time, pathlib\n"
        "from tropigrad.kernels.runtime import native\n"
        "source, compiler = map(pathlib.Path, sys.argv[1:])\n"
        "work = threading.Thread(target=native.library, args=(source, 'ANSWER=42'))\n"
        "work.start()\n"
        "while not compiler.with_suffix('.pid').exists(): time.sleep(0.01)\n"
        "if not (child := os.fork()): sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "compiler.with_suffix('.go').touch()\n"
        "work.join()\n"
        "raise SystemExit(native.library(source, 'ANSWER=42').answer() - 42)"
    )
    command = [sys.executable, "-c", program, str(source), str(compiler)]
    subprocess.run(command, env=os.environ | {"CXX": str(compiler)}, check=True, timeout=120)
    assert [path.suffix for path in built(tmp_path)] == [".so"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_killed_build_leaves_no_half_library(source, tmp_path, monkeypatch, how):
    compiler = slow_compiler(tmp_path)
    program = (
        "import sys, pathlib; from tropigrad.kernels.runtime import native; native.library(pathlib.Path(sys.argv[1]))"
    )
    source.write_text("#define ANSWER 42\n" + SOURCE)
    run = subprocess.Popen([sys.executable, "-c", program, str(source)], env=os.environ | {"CXX": str(compiler)},
                           stderr=subprocess.DEVNULL)  # fmt: skip
    compiling = int(wait_for(Path(f"{compiler}.pid")))
    run.send_signal(how)
    assert run.wait(timeout=60) != 0
    left = built(tmp_path)
    assert not [path for path in left if path.suffix == ".so"]
    if how == signal.SIGINT:  # which Python hears of
        assert left == []
        assert not is_running(compiling)
        return
    (unfinished,) = left
    os.kill(compiling, signal.SIGKILL)
    assert answer(native.library(source)) == 42  # as if nothing had been
    assert unfinished.exists()  # it might be another's, at work
    long_ago = time.time() - 3 * build._LONGEST_BUILD
    os.utime(unfinished, (long_ago, long_ago))
    source.write_text("#define ANSWER 43\n" + SOURCE)
    build.kernel_library.cache_clear()
    assert answer(native.library(source)) == 43
    assert [path.suffix for path in built(tmp_path)] == [".so", ".so"]


# ------------------------------------------------------------------------------------------------ forms

SHORTEST = native.Form("x86-64")
needs_x86 = pytest.mark.skipif(bool(native.why_not(SHORTEST)), reason=native.why_not(SHORTEST) or "an x86-64 processor")


@needs_x86
def test_a_form_is_a_library_of_its_own_until_the_block_ends(source, tmp_path):
    names = [name(native.library(source, "ANSWER=1"))]
    with native.building(SHORTEST):
        names.append(name(native.library(source, "ANSWER=1")))
        probe = native.library(libraries._PROBE)
        assert probe is not None
        assert probe.vector_bytes() == 16
    names.append(name(native.library(source, "ANSWER=1")))
    assert names[0] == names[2] != names[1]


def name(loaded: ctypes.CDLL | None) -> str:
    assert loaded is not None
    return loaded._name


@needs_x86
def test_a_form_that_cannot_be_is_named():
    assert "x86-64 has no fused multiply-add" in native.why_not(native.Form("x86-64", by_fma=True))
    assert "this compiler does not build for x86-64-v9" in native.why_not(native.Form("x86-64-v9"))
    needs = "ADD_BY_FMA needs a processor with a fused multiply-add"
    with native.building(SHORTEST), pytest.warns(RuntimeWarning, match=needs):
        assert native.library(libraries._PROBE, "ADD_BY_FMA") is None


@pytest.mark.parametrize("by_fma", [False, True], ids=["addition", "fma"])
def test_the_form_is_told(by_fma):
    form = native.Form(by_fma=by_fma)
    if native.why_not(form):
        pytest.skip(native.why_not(form))
    with native.building(form):
        sums = "FMA" if by_fma else "addition"
        assert re.fullmatch(rf"vectors of (16|32|64) bytes, sums by {sums}, \S.*", native.form())


def test_without_a_compiler_there_is_no_form(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert native.form().startswith("none: no C++ compiler found")


# ------------------------------------------------------------------------------------------------ other libraries


def test_the_team_is_torchs_own():
    """Also where another package has loaded an OpenMP runtime of its own."""
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    team = native.openmp_team()
    if team is None:
        pytest.skip("torch was built without an OpenMP runtime that has GOMP_parallel")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [(*(int(end, 16) for end in line[0].split("-")), line[-1]) for line in lines]
    (owner,) = [path for low, high, path in spans if low <= team < high]
    assert Path(torch.__file__).parent in Path(owner).parents


def test_machines_of_two_architectures_share_no_extension(tmp_path, monkeypatch):
    source, targets = tmp_path / "any.cpp", set()
    source.write_text("")
    monkeypatch.setattr(build, "load", lambda target, *others: str(target))
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        libraries._extension.cache_clear()
        targets.add(libraries._extension(source, True))
    libraries._extension.cache_clear()
    assert len(targets) == 2


def test_an_extension_that_cannot_be_compiled_is_absent_without_a_word(tmp_path):
    source = tmp_path / "wrong.cpp"
    source.write_text("#error this is wrong\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.extension(source, compiles=False) is None
        assert native.extension(source, compiles=True) is None
