"""Compiling a C++ file into a library that is cached: one file, with those that it includes, one library.

A library's name is a hash of all that made it: source, what that includes, flags, compiler, processor. It is compiled
in an unfinished folder beside its place and moved there in one step, so any number of processes may build at once and
none sees half a file. Its last bytes are its own checksum (loaders ignore what follows an ELF image), so a damaged
file is built again, not run. A build that was killed leaves its folder, which a later build removes. ctypes calls
release the interpreter's lock.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .... import autotune
from ....autotune.keys import with_included

# contraction off: a · b must be rounded before it is compared or added, as torch rounds it. No trapping: nobody reads
# the floating-point flags, and loops with a choice between two sums vectorise.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")
FLAGS += ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
HEADER = Path(__file__).with_name("native.hpp")  # which the sources include
CANDIDATES = ("c++", "g++", "clang++")

# an extension of torch holds no loops, but needs the ABI of this very torch
_TORCH = Path(torch.__file__).parent
EXTENSION_FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC", f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}")
EXTENSION_FLAGS += ("-ltorch_cpu", "-lc10", f'-DBUILT_FOR="torch {torch.__version__}"')


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


def why_no_compiler() -> str:
    """Why no C++ kernel can be compiled here; "" where a compiler answers. Cheap after the first call."""
    compiler = compiler_or_reason()
    return compiler if isinstance(compiler, str) else ""


def compiler() -> Compiler | None:
    """The compiler of the C++ kernels; None where there is none. Cheap after the first call."""
    compiler = compiler_or_reason()
    return None if isinstance(compiler, str) else compiler


def compiler_or_reason() -> Compiler | str:
    """The compiler that CXX and PATH lead to now, or why there is none."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _compiler(cxx: str, path: str) -> Compiler | str:
    """The first compiler that answers, or why there is none."""
    try:
        named = shlex.split(cxx)
    except ValueError as error:
        return f"CXX is {cxx!r}: {error}; set it to a C++ compiler, or unset it"
    for command in [named] if named else [[name] for name in CANDIDATES]:
        executable = shutil.which(command[0], path=path)
        if executable is None:
            continue
        command = (executable, *command[1:])
        try:
            answer = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        if answer.returncode == 0:
            return Compiler(command, answer.stdout)
    if named:
        return f"CXX is {cxx!r}, which does not answer as a C++ compiler; set it to one that does, or unset it"
    return f"no C++ compiler found ({', '.join(CANDIDATES)}); install one (Debian: apt install g++) or set CXX"


@functools.cache
def kernel_library(source: Path, flags: tuple[str, ...], compiler: Compiler) -> ctypes.CDLL | str:
    """A kernel's library, apart from those for other compilers and processors; or why there is none."""
    return load(target_of(source, flags, f"{compiler!r}{_processor()}"), source, flags, compiler)


def target_of(source: Path, flags: tuple[str, ...], environment: str) -> Path:
    """The library's place in the cache. `environment`: whatever else the compiled code depends on."""
    return cache_folder() / f"{source.parent.name}-{source.stem}-{_key(source, flags, environment)}.so"


def load(target: Path, source: Path, flags: tuple[str, ...], compiler: Compiler | str) -> ctypes.CDLL | str:
    """The library at `target`, compiled now if it is not there; or why there is none.

    compiler: or the reason why nothing can be compiled, which is returned where the library would have to be.
    """
    try:
        return ctypes.CDLL(_intact(target))
    except (OSError, ValueError):  # not there yet, or damaged
        if isinstance(compiler, str):
            return compiler
    try:
        _build(compiler, flags, source, target)
        return ctypes.CDLL(_intact(target))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"{source.name} did not compile: {error}"


def _key(source: Path, flags: tuple[str, ...], environment: str) -> str:
    parts = *(path.read_bytes() for path in with_included(source)), repr(flags).encode(), environment.encode()
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """All that -march=native depends on: machines of different processors may share one home."""
    lines = {line for line in _cpuinfo() if line.split(":")[0].strip() in ("flags", "Features", *_NAMES)}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(lines)])


_NAMES = ("model name", "CPU part")  # the keys of /proc/cpuinfo, on x86 and on ARM


def processor() -> str:
    """The processor's name, as the system tells it."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.split(":")[0].strip() in _NAMES]
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def cache_folder() -> Path:
    """The folder of the libraries. Nobody but this user can write to it, since the files in it are run."""
    try:
        folder = autotune.cache_dir().absolute() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022:
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except (OSError, RuntimeError):  # not writable, not a folder; or there is no home
        pass
    return _private_folder()


@functools.cache
def _private_folder() -> Path:
    folder, owner = tempfile.mkdtemp(prefix="tropigrad-native-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked process also runs the exit functions of its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def _after_fork() -> None:
    """The private folder of the parent process is not the child's own."""
    _private_folder.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def _intact(target: Path) -> str:
    """The path of a library whose checksum matches.

    Raises:
        ValueError: it does not match.
    """
    content = target.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise ValueError(f"{target} is damaged: its checksum does not match")
    return str(target)


_LONGEST_BUILD = 600.0  # seconds


def _build(compiler: Compiler, flags: tuple[str, ...], source: Path, target: Path) -> None:
    """Compiles, and publishes the library in one step.

    Raises:
        ValueError: the compiler's first error line.
    """
    _remove_abandoned(target.parent)
    folder = tempfile.mkdtemp(prefix=f"{target.stem}-", suffix=_UNFINISHED, dir=target.parent)
    try:
        unfinished = os.path.join(folder, target.name)
        command = [*compiler.command, str(source), *flags, "-o", unfinished]  # libraries come after what needs them
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"TMPDIR": folder}  # the files of a killed compiler are then removed with it
        with subprocess.Popen(command, start_new_session=True, env=environment, **streams) as process:
            try:
                errors = process.communicate(timeout=_LONGEST_BUILD)[1]
            except BaseException:
                _end(process)
                raise
        if process.returncode != 0:
            lines = [line for line in errors.splitlines() if line.strip()]
            silent = [f"{compiler.command[0]} ended with status {process.returncode}"]
            raise ValueError(([line for line in lines if "error" in line.lower()] or lines or silent)[0])
        with open(unfinished, "r+b") as file:
            checksum = hashlib.sha256(file.read()).digest()
            file.write(checksum)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(compiling: subprocess.Popen) -> None:
    """Ends the compiler and the programs that it has started; it removes its temporary files."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(compiling.pid, signal.SIGTERM)


_UNFINISHED = ".unfinished"


def _remove_abandoned(folder: Path) -> None:
    """Removes the folders that killed builds have left: those older than any build may be."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > 2 * _LONGEST_BUILD:
                shutil.rmtree(path, ignore_errors=True)
