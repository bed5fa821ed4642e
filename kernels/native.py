"""C++ kernels, compiled by the system's compiler at first use and cached: one file with a C interface, one library.

A library's name is a hash of all that made it: source, native.hpp, flags, compiler, processor. It is compiled under a
temporary name beside its place and moved there in one step, so any number of processes may build at once and none sees
half a file; its last bytes are its own checksum (loaders ignore what follows an ELF image), so a damaged file is built
again, not run. ctypes calls release the interpreter's lock.
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
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..autotune import cache_dir

# contraction off: a · b must be rounded before it is compared or added, as torch rounds it. No trapping: nobody reads
# the floating-point flags, and loops with a choice between two sums vectorise.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
FLAGS += ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_SHARED = Path(__file__).with_suffix(".hpp")  # what sources include
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


def library_of(source: Path, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library of one dtype, as `library` gives it."""
    adding = ("ADD_BY_FMA",) if dtype.is_floating_point and adds_by_fma() else ()
    found = library(source, f"ELEMENT={ELEMENTS[dtype]}", *adding)
    if found is not None:
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
    if not compiles and not (cache_dir() / "native").is_dir():
        return "nothing is compiled yet"
    compiler = _compiler_now() if compiles else "it is not compiled yet"
    return _loaded(_target(source, EXTENSION_FLAGS, ""), source, EXTENSION_FLAGS, compiler)


def required(op: str, source: Path, dtype: torch.dtype) -> ctypes.CDLL:
    """The library of one dtype, where C++ was chosen.

    Raises:
        RuntimeError: it did not compile.
    """
    found = library_of(source, dtype)
    if found is None:
        raise RuntimeError(f"{op}: the C++ kernel of {dtype} did not compile; TROPIGRAD_BACKEND=torch avoids it")
    return found


@functools.cache
def adds_by_fma() -> bool:
    """Whether sums are made as fma(a, 1, b), which rounds as a + b does: where half a millisecond says it gains."""
    probe = _library(_PROBE, ())
    return not isinstance(probe, str) and bool(probe.fma_adds_faster())


def is_loaded(source: Path, dtype: torch.dtype) -> bool:
    """Whether `library_of` has given one before: then nobody need look for a compiler, which costs 5 µs."""
    return (source, dtype) in _libraries


_libraries: set[tuple[Path, torch.dtype]] = set()


# Of a C++ kernel's space; 0: all of torch's, where there is work for them. Any number gives the same bits.
THREADS = (0, 1, 2, 4, 8, 16)


def threads(wanted: int, work: int, small: int) -> int:
    """How many threads a call takes: as many as its config wants, or, where that is 0, all unless its work is small."""
    return wanted or (torch.get_num_threads() if work > small else 1)


def integers(*values: int):
    """What a library takes for `const int64_t*`."""
    return (ctypes.c_int64 * len(values))(*values)


def shape_only(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What torch.empty_like takes half a microsecond less than torch.empty for: a tensor that holds no memory."""
    like = torch.empty(shape, dtype=dtype, device="cpu")
    like.untyped_storage().resize_(0)
    return like


@functools.cache
def warn_of_slower_path(reason: str) -> None:
    """Says once, per reason, that torch stands in for the C++ kernels."""
    warnings.warn(f"CPU kernels run on torch's slower path: {reason}", RuntimeWarning, stacklevel=2)


def _library(source: Path, defines: tuple[str, ...]) -> ctypes.CDLL | str:
    compiler = _compiler_now()
    flags = (*FLAGS, *(f"-D{define}" for define in defines))
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
    parts = (source.read_bytes(), _SHARED.read_bytes(), repr(flags).encode(), environment.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """What -march=native depends on: machines of different processors may share one home."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name", "CPU part")}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(named)])


def cache_folder() -> Path:
    """Where the libraries lie: a folder of ours that nobody else can write to, since what lies there is run."""
    try:
        folder = cache_dir().absolute() / "native"
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
    folder = tempfile.mkdtemp(prefix="tropigrad-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _intact(target: Path) -> str:
    content = target.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise ValueError(f"{target} is damaged: its checksum does not match")
    return str(target)


def _end(compiling: subprocess.Popen) -> None:
    """With the programs that the compiler has started; it removes its temporary files."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(compiling.pid, signal.SIGTERM)


def _build(compiler: Compiler, flags: tuple[str, ...], source: Path, target: Path) -> None:
    """Compile and publish in one step.

    Raises:
        ValueError: the compiler's first error line.
    """
    handle, unfinished = tempfile.mkstemp(suffix=".so", prefix=f"{target.stem}-", dir=target.parent)
    os.close(handle)
    try:
        command = [*compiler.command, str(source), *flags, "-o", unfinished]  # libraries come after what needs them
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, start_new_session=True, **streams) as process:
            try:
                said = process.communicate(timeout=600)[1]
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
        Path(unfinished).unlink(missing_ok=True)
