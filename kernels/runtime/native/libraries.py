"""C++ kernels, compiled by the system's compiler at first use and cached: one file with a C interface, one library.

A library's name is a hash of all that made it: source, native.hpp, flags, compiler, processor. It is compiled in an
unfinished folder beside its place and moved there in one step, so any number of processes may build at once and none
sees half a file; its last bytes are its own checksum (loaders ignore what follows an ELF image), so a damaged file is
built again, not run. A build that was killed leaves its folder to the next one. ctypes calls release the interpreter's
lock.

A library is built in one of several forms: how wide its vectors are, and whether its sums are made as fma(a, 1, b).
Every form gives the same bits, whatever processor it is for; `building` chooses one for tests.
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
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .... import autotune

# contraction off: a · b must be rounded before it is compared or added, as torch rounds it. No trapping: nobody reads
# the floating-point flags, and loops with a choice between two sums vectorise.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")
FLAGS += ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
HEADER = Path(__file__).with_name("native.hpp")  # what sources include
_PROBE = Path(__file__).with_name("add_probe.cpp")
CANDIDATES = ("c++", "g++", "clang++")
ELEMENTS = {  # the C++ names; each dtype is a library of its own, compiled when first met
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "Brain",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
}


# an extension of torch holds no loops, but needs the ABI of this very torch
_TORCH = Path(torch.__file__).parent
EXTENSION_FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC", f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}")
EXTENSION_FLAGS += ("-ltorch_cpu", "-lc10", f'-DBUILT_FOR="torch {torch.__version__}"')


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Form:
    """How the C++ kernels are built.

    Args:
        processor: what -march is given. x86-64 and x86-64-v2 have vectors of 16 bytes, v3 of 32, v4 of 64.
        by_fma: whether sums of floats are made as fma(a, 1, b), which rounds as a + b does; None: where that is faster.
    """

    processor: str = "native"
    by_fma: bool | None = None

    def __str__(self) -> str:
        return self.processor + {None: "", True: "-fma", False: "-addition"}[self.by_fma]


LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")  # of the x86-64 ABI: each has what the one before has
_form = Form()


def why_no_compiler() -> str:
    """Why no C++ kernel can be compiled here; "" where a compiler answers. Cheap after the first call."""
    found = _compiler_now()
    return found if isinstance(found, str) else ""


def compiler() -> Compiler | None:
    """The compiler of the C++ kernels; None where there is none. Cheap after the first call."""
    found = _compiler_now()
    return None if isinstance(found, str) else found


def library(source: Path, *defines: str) -> ctypes.CDLL | None:
    """`source` compiled and loaded, from the cache if it is there; None, after one RuntimeWarning, where that fails.

    defines: preprocessor definitions, "NAME=value" or "NAME", where one source makes several libraries.
    Environment: CXX names the compiler, TROPIGRAD_CACHE_DIR the cache (default: the user's cache folder).
    """
    found = _library(source, defines)
    if isinstance(found, str):
        warn_of_slower_path(found)
        return None
    return found


def library_of(source: Path, dtype: torch.dtype, *defines: str) -> ctypes.CDLL | None:
    """The library of one dtype, as `library` gives it, told to compute with the threads that torch computes with."""
    adding = ("ADD_BY_FMA",) if dtype.is_floating_point and has_two_sums(source) and adds_by_fma() else ()
    found = library(source, f"ELEMENT={ELEMENTS[dtype]}", *adding, *defines)
    if found is not None:
        found.tropigrad_set_team.argtypes = [ctypes.c_void_p]
        found.tropigrad_set_team(openmp_team())
        _libraries.add((source, dtype))
    return found


def extension(source: Path, *, compiles: bool) -> ctypes.CDLL | None:
    """`source`, which includes torch's headers, from the cache or compiled; None, without a word, where that fails.

    It saves microseconds and changes no result, so nobody need hear of its absence. Any compiler's is as good as
    another's, so the cache is asked without looking for one.
    """
    found = _extension(source, compiles)
    return None if isinstance(found, str) else found


@functools.cache
def _extension(source: Path, compiles: bool) -> ctypes.CDLL | str:
    if not compiles and not (autotune.cache_dir() / "native").is_dir():
        return "nothing is compiled yet"
    compiler = _compiler_now() if compiles else "it is not compiled yet"
    target = _target(source, EXTENSION_FLAGS, platform.machine())  # a home may serve machines of two architectures
    return _loaded(target, source, EXTENSION_FLAGS, compiler)


def required(op: str, source: Path, dtype: torch.dtype) -> ctypes.CDLL:
    """The library of one dtype, where C++ was chosen.

    Raises:
        RuntimeError: it did not compile.
    """
    found = library_of(source, dtype)
    if found is None:
        raise RuntimeError(f"{op}: the C++ kernel of {dtype} did not compile; TROPIGRAD_BACKEND=torch avoids it")
    return found


def cached(function: Callable[..., Any]) -> Any:
    """functools.cache, for what holds on to a library: emptied where `building` begins and ends."""
    kept = functools.cache(function)
    _of_one_form.append(kept.cache_clear)
    return kept


_of_one_form: list[Callable[[], object]] = []


@functools.cache
def has_two_sums(source: Path) -> bool:
    """Whether the source adds by native.hpp's Plus, and so makes two libraries, by FMA and by addition."""
    return b"Plus" in source.read_bytes()


@cached
def adds_by_fma() -> bool:
    """Whether sums are made as fma(a, 1, b), which rounds as a + b does: where half a millisecond says it gains."""
    if _form.by_fma is not None:
        return _form.by_fma
    probe = _library(_PROBE, ())
    return not isinstance(probe, str) and bool(probe.fma_adds_faster())


@contextlib.contextmanager
def building(form: Form) -> Iterator[None]:
    """Inside the block, in all threads, libraries are built and run in this form, which `why_not` allows.

    Nothing may be running on a C++ kernel as the block begins or ends.
    """
    global _form
    before = _form
    try:
        _form = form
        _forget_libraries()
        yield
    finally:
        _form = before
        _forget_libraries()


def _forget_libraries() -> None:
    for forget in _of_one_form:
        forget()
    _libraries.clear()
    autotune.reload()  # remembered calls hold functions of libraries


def why_not(form: Form) -> str:
    """Why libraries of this form cannot be built or run here; "" where they can."""
    probe = _library(_PROBE, (), Form())
    if isinstance(probe, str):
        return probe
    if form.processor in LEVELS and LEVELS.index(form.processor) >= probe.x86_64_level():
        return f"this processor lacks what {form.processor} has"
    found = _library(_PROBE, (), form)
    if isinstance(found, str):
        return f"this compiler does not build for {form.processor}: {found}"
    return f"{form.processor} has no fused multiply-add of vectors" if form.by_fma and not found.fuses() else ""


def form() -> str:
    """In which form the C++ kernels are taken here, for people: "vectors of 32 bytes, sums by FMA, AMD EPYC 7B13"."""
    probe = _library(_PROBE, ())
    if isinstance(probe, str):
        return f"none: {probe}"
    return f"vectors of {vector_bytes()} bytes, sums by {'FMA' if adds_by_fma() else 'addition'}, {processor()}"


def vector_bytes() -> int:
    """How wide the vectors of the C++ kernels are here; 0 where nothing compiles."""
    probe = _library(_PROBE, ())
    return 0 if isinstance(probe, str) else probe.vector_bytes()


def is_loaded(source: Path, dtype: torch.dtype) -> bool:
    """Whether `library_of` has given one before: then nobody need look for a compiler, which costs 5 µs."""
    return (source, dtype) in _libraries


def loaded() -> frozenset[tuple[Path, torch.dtype]]:
    """The sources and dtypes that `library_of` has given libraries of, in the form of now."""
    return frozenset(_libraries)


_libraries: set[tuple[Path, torch.dtype]] = set()  # in the form of now


# Of a C++ kernel's space; 0: all of torch's, where there is work for them. Any number gives the same bits.
THREADS = (0, 1, 2, 4, 8, 16)


def threads(wanted: int, work: int, small: int) -> int:
    """How many threads a call takes: as many as its config wants, or, where that is 0, all unless its work is small."""
    return wanted or (torch.get_num_threads() if work > small else 1)


def integers(*values: int):
    """What a library takes for `const int64_t*`."""
    return (ctypes.c_int64 * len(values))(*values)


@functools.cache
def warn_of_slower_path(reason: str) -> None:
    """Says once, per reason, that torch stands in for the C++ kernels."""
    warnings.warn(f"CPU kernels run on torch's slower path: {reason}", RuntimeWarning, stacklevel=2)


def _library(source: Path, defines: tuple[str, ...], form: Form | None = None) -> ctypes.CDLL | str:
    compiler = _compiler_now()
    flags = (*FLAGS, f"-march={(form or _form).processor}", *(f"-D{define}" for define in defines))
    return compiler if isinstance(compiler, str) else _made(source, flags, compiler)


@functools.cache
def _made(source: Path, flags: tuple[str, ...], compiler: Compiler) -> ctypes.CDLL | str:
    return _loaded(_target(source, flags, f"{compiler!r}{_processor()}"), source, flags, compiler)


def _target(source: Path, flags: tuple[str, ...], environment: str) -> Path:
    return cache_folder() / f"{source.parent.name}-{source.stem}-{_key(source, flags, environment)}.so"


def _loaded(target: Path, source: Path, flags: tuple[str, ...], compiler: Compiler | str) -> ctypes.CDLL | str:
    """What lies at `target` or is compiled now, or why nothing is: `compiler` may be a reason."""
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


def _compiler_now() -> Compiler | str:
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _compiler(cxx: str, path: str) -> Compiler | str:
    """The first compiler that answers, or why there is none."""
    try:
        asked = shlex.split(cxx)
    except ValueError as error:
        return f"CXX is {cxx!r}: {error}; set it to a C++ compiler, or unset it"
    for command in [asked] if asked else [[name] for name in CANDIDATES]:
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
    if asked:
        return f"CXX is {cxx!r}, which does not answer as a C++ compiler; set it to one that does, or unset it"
    return f"no C++ compiler found ({', '.join(CANDIDATES)}); install one (Debian: apt install g++) or set CXX"


@functools.cache
def openmp_team() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch itself computes with; None without one.

    Asked of torch's own library: other packages bring runtimes of theirs into the process.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def _key(source: Path, flags: tuple[str, ...], environment: str) -> str:
    parts = (source.read_bytes(), HEADER.read_bytes(), repr(flags).encode(), environment.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """What -march=native depends on: machines of different processors may share one home."""
    named = {line for line in _cpuinfo() if line.split(":")[0].strip() in ("flags", "Features", *_NAMES)}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(named)])


_NAMES = ("model name", "CPU part")  # which /proc/cpuinfo gives, of x86 and of ARM


def processor() -> str:
    """The processor's name, as the system tells it."""
    named = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.split(":")[0].strip() in _NAMES]
    return named[0] if named else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def cache_folder() -> Path:
    """Where the libraries lie: a folder of ours that nobody else can write to, since what lies there is run."""
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
        if os.getpid() == owner:  # a forked process runs what was registered before it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def _intact(target: Path) -> str:
    content = target.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise ValueError(f"{target} is damaged: its checksum does not match")
    return str(target)


def _after_fork() -> None:
    """In the new process: the private folder of the old one is not its own."""
    _private_folder.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def _end(compiling: subprocess.Popen) -> None:
    """With the programs that the compiler has started; it removes its temporary files."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(compiling.pid, signal.SIGTERM)


_LONGEST_BUILD = 600.0  # seconds


def _build(compiler: Compiler, flags: tuple[str, ...], source: Path, target: Path) -> None:
    """Compile and publish in one step.

    Raises:
        ValueError: the compiler's first error line.
    """
    _remove_abandoned(target.parent)
    folder = tempfile.mkdtemp(prefix=f"{target.stem}-", suffix=_UNFINISHED, dir=target.parent)
    try:
        unfinished = os.path.join(folder, target.name)
        command = [*compiler.command, str(source), *flags, "-o", unfinished]  # libraries come after what needs them
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"TMPDIR": folder}  # what a killed compiler leaves lies there too
        with subprocess.Popen(command, start_new_session=True, env=environment, **streams) as process:
            try:
                said = process.communicate(timeout=_LONGEST_BUILD)[1]
            except BaseException:
                _end(process)
                raise
        if process.returncode != 0:
            lines = [line for line in said.splitlines() if line.strip()]
            silent = [f"{compiler.command[0]} ended with status {process.returncode}"]
            raise ValueError(([line for line in lines if "error" in line.lower()] or lines or silent)[0])
        with open(unfinished, "r+b") as file:
            checksum = hashlib.sha256(file.read()).digest()
            file.write(checksum)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_UNFINISHED = ".unfinished"


def _remove_abandoned(folder: Path) -> None:
    """What builds that were killed have left: older than any build may be."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > 2 * _LONGEST_BUILD:
                shutil.rmtree(path, ignore_errors=True)
