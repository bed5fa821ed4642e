"""C++ kernels, compiled by the system's compiler at first use and cached: one file of a plain C interface, one library.

A library's name is the hash of all that made it: source, compiler, flags, processor. It is compiled to a temporary file
beside its place and moved there in one step, so any number of processes may build at once and none sees half a file.
ctypes calls release the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

# contraction off: a · b must be rounded before it is compared or summed, as torch rounds it
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno")
CANDIDATES = ("c++", "g++", "clang++")
SLOWER = "the CPU kernels fall back on slower torch code"


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


def why_no_compiler() -> str:
    """Why no C++ kernel can be compiled here; "" where a compiler answers. Cheap after the first call."""
    found = _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))
    return found if isinstance(found, str) else ""


def library(source: Path) -> ctypes.CDLL | None:
    """The compiled form of `source`, from the cache if it is there; None, after one warning, where that fails.

    Environment: CXX names the compiler, TROPIGRAD_CACHE_DIR the cache (default: the user's cache folder).
    """
    return _library(Path(source), os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _library(source: Path, cxx: str, path: str) -> ctypes.CDLL | None:
    compiler = _compiler(cxx, path)
    if isinstance(compiler, str):
        _warn_of_no_compiler(compiler)
        return None
    target = cache_folder() / f"{source.parent.name}-{source.stem}-{_key(source, compiler)}.so"
    try:
        return ctypes.CDLL(str(target))
    except OSError:  # not there yet, or not whole: a disk filled up, or something else wrote there
        pass
    error = _compile(compiler, source, target)
    if not error:
        try:
            return ctypes.CDLL(str(target))
        except OSError as unloadable:
            error = str(unloadable)
    warnings.warn(f"{source.name} did not compile, so {SLOWER}: {error}", RuntimeWarning, stacklevel=3)
    return None


@functools.cache
def _warn_of_no_compiler(reason: str) -> None:
    warnings.warn(f"{reason}; {SLOWER}", RuntimeWarning, stacklevel=4)


@functools.cache
def _compiler(cxx: str, path: str) -> Compiler | str:
    """The first compiler that answers, or why there is none."""
    names = [tuple(shlex.split(cxx))] if cxx.strip() else [(name,) for name in CANDIDATES]
    for command in names:
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
    if cxx.strip():
        return f"CXX is {cxx!r}, which does not run as a C++ compiler: set it to one, or unset it"
    return f"no C++ compiler was found ({', '.join(CANDIDATES)}): install one (Debian: apt install g++), or set CXX"


def _key(source: Path, compiler: Compiler) -> str:
    """-march=native means another processor on another machine that shares this home, hence its flags."""
    parts = (source.read_bytes(), repr(compiler).encode(), repr(FLAGS).encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name", "CPU part")}
    return "\n".join([platform.system(), platform.machine(), *sorted(told)])


def cache_folder() -> Path:
    """Where the libraries lie: a folder of ours that nobody else can write to, since what lies there is run."""
    root = os.environ.get("TROPIGRAD_CACHE_DIR")
    if not root:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tropigrad"
    folder = Path(root).expanduser() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid():
            if stat.S_IMODE(status.st_mode) != 0o700:
                folder.chmod(0o700)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError:
        pass
    return _private_folder()


@functools.cache
def _private_folder() -> Path:
    """For this process alone, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="tropigrad-native-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory] = []


def _compile(compiler: Compiler, source: Path, target: Path) -> str:
    """Compile and publish; "" or the first line of what the compiler had to say."""
    handle, unfinished = tempfile.mkstemp(suffix=".so", prefix=f"{target.stem}-", dir=target.parent)
    os.close(handle)
    try:
        command = [*compiler.command, *FLAGS, str(source), "-o", unfinished]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if answer.returncode != 0:
            lines = [line for line in answer.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()]
            return (errors or lines or [f"{compiler.command[0]} ended with status {answer.returncode}"])[0]
        os.replace(unfinished, target)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return ""
