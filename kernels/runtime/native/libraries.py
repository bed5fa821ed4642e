"""The libraries of the C++ kernels: one for each source, dtype and form, compiled at first use (build.py).

A library is built in one of several forms: how wide its vectors are, and whether its sums are made as fma(a, 1, b).
Every form gives the same bits, whatever processor it is for; `building` chooses one for tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .... import autotune
from ....autotune.keys import with_included
from . import build

_PROBE = Path(__file__).with_name("add_probe.cpp")
ELEMENTS = {  # the C++ names; each dtype is a library of its own, compiled when first met
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "Brain",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
}


@dataclass(frozen=True)
class Form:
    """How the C++ kernels are built.

    Args:
        processor: the argument of -march. x86-64 and x86-64-v2 have vectors of 16 bytes, v3 of 32, v4 of 64.
        by_fma: whether sums of floats are made as fma(a, 1, b), which rounds as a + b does; None: where that is faster.
    """

    processor: str = "native"
    by_fma: bool | None = None

    def __str__(self) -> str:
        return self.processor + {None: "", True: "-fma", False: "-addition"}[self.by_fma]


LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")  # of the x86-64 ABI: each has what the one before has
_form = Form()


def library(source: Path, *defines: str) -> ctypes.CDLL | None:
    """`source` compiled and loaded, from the cache if it is there; None, after one RuntimeWarning, where that fails.

    defines: preprocessor definitions, "NAME=value" or "NAME", where one source makes several libraries.
    Environment: CXX names the compiler, TROPIGRAD_CACHE_DIR the cache (default: the user's cache folder).
    """
    library = _library(source, defines)
    if isinstance(library, str):
        warn_of_slower_path(library)
        return None
    return library


def library_of(source: Path, dtype: torch.dtype, *defines: str) -> ctypes.CDLL | None:
    """The library of one dtype, as `library` gives it, told to compute with the threads that torch computes with."""
    adding = ("ADD_BY_FMA",) if dtype.is_floating_point and has_two_sums(source) and adds_by_fma() else ()
    of_dtype = library(source, f"ELEMENT={ELEMENTS[dtype]}", *adding, *defines)
    if of_dtype is not None:
        of_dtype.tropigrad_set_team.argtypes = [ctypes.c_void_p]
        of_dtype.tropigrad_set_team(openmp_team())
        _libraries.add((source, dtype))
    return of_dtype


def extension(source: Path, *, compiles: bool) -> ctypes.CDLL | None:
    """`source`, which includes torch's headers, from the cache or compiled; None, without a warning, where that fails.

    Without it calls are a few microseconds slower and give the same results, hence no warning. The compiler is not
    part of the cache's key, since an extension of any compiler will do: a cached one is loaded without looking for one.
    """
    library = _extension(source, compiles)
    return None if isinstance(library, str) else library


@functools.cache
def _extension(source: Path, compiles: bool) -> ctypes.CDLL | str:
    if not compiles and not (autotune.cache_dir() / "native").is_dir():
        return "nothing is compiled yet"
    compiler = build.compiler_or_reason() if compiles else "it is not compiled yet"
    # the architecture is part of the key: machines of two may share one home
    target = build.target_of(source, build.EXTENSION_FLAGS, platform.machine())
    return build.load(target, source, build.EXTENSION_FLAGS, compiler)


def required(op: str, source: Path, dtype: torch.dtype) -> ctypes.CDLL:
    """The library of one dtype, where C++ was chosen.

    Raises:
        RuntimeError: it did not compile.
    """
    library = library_of(source, dtype)
    if library is None:
        raise RuntimeError(f"{op}: the C++ kernel of {dtype} did not compile; TROPIGRAD_BACKEND=torch avoids it")
    return library


def cached(function: Callable[..., Any]) -> Any:
    """functools.cache, for functions whose results hold a library: emptied where `building` begins and ends."""
    kept = functools.cache(function)
    _of_one_form.append(kept.cache_clear)
    return kept


_of_one_form: list[Callable[[], object]] = []


@functools.cache
def has_two_sums(source: Path) -> bool:
    """Whether the source adds by native.hpp's Plus, and so makes two libraries, by FMA and by addition."""
    own = (path for path in with_included(source) if path != build.HEADER.resolve())
    return any(b"Plus" in path.read_bytes() for path in own)


@cached
def adds_by_fma() -> bool:
    """Whether sums are made as fma(a, 1, b), which rounds as a + b does: if a probe of 0.5 ms is faster so."""
    if _form.by_fma is not None:
        return _form.by_fma
    probe = _library(_PROBE, ())
    return not isinstance(probe, str) and bool(probe.fma_adds_faster())


@contextlib.contextmanager
def building(form: Form) -> Iterator[None]:
    """Inside the block, in all threads, libraries are built and run in this form.

    `why_not(form)` must be "", and no C++ kernel may be running as the block begins or ends.
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
    autotune.reload()  # the plans of dispatch.py hold functions of libraries


def why_not(form: Form) -> str:
    """Why libraries of this form cannot be built or run here; "" where they can."""
    probe = _library(_PROBE, (), Form())
    if isinstance(probe, str):
        return probe
    if form.processor in LEVELS and LEVELS.index(form.processor) >= probe.x86_64_level():
        return f"this processor lacks what {form.processor} has"
    built = _library(_PROBE, (), form)
    if isinstance(built, str):
        return f"this compiler does not build for {form.processor}: {built}"
    return f"{form.processor} has no fused multiply-add of vectors" if form.by_fma and not built.fuses() else ""


def form() -> str:
    """The form in which the C++ kernels run here, for people: "vectors of 32 bytes, sums by FMA, AMD EPYC 7B13"."""
    probe = _library(_PROBE, ())
    if isinstance(probe, str):
        return f"none: {probe}"
    return f"vectors of {vector_bytes()} bytes, sums by {'FMA' if adds_by_fma() else 'addition'}, {build.processor()}"


def vector_bytes() -> int:
    """The width of the C++ kernels' vectors here; 0 where nothing compiles."""
    probe = _library(_PROBE, ())
    return 0 if isinstance(probe, str) else probe.vector_bytes()


def is_loaded(source: Path, dtype: torch.dtype) -> bool:
    """Whether `library_of` has loaded this one before. If so, the 5 µs of looking for a compiler can be spared."""
    return (source, dtype) in _libraries


def loaded() -> frozenset[tuple[Path, torch.dtype]]:
    """The sources and dtypes whose libraries `library_of` has loaded, in the current form."""
    return frozenset(_libraries)


_libraries: set[tuple[Path, torch.dtype]] = set()  # in the current form


# The numbers of threads in a C++ kernel's space. 0: all of torch's, if there is work for them. The bits are the same.
THREADS = (0, 1, 2, 4, 8, 16)


def threads(wanted: int, work: int, small: int) -> int:
    """The threads of a call: as many as its config wants; if that is 0, all of torch's, but one for small work."""
    return wanted or (torch.get_num_threads() if work > small else 1)


def integers(*values: int):
    """An array that a library takes for `const int64_t*`."""
    return (ctypes.c_int64 * len(values))(*values)


@functools.cache
def warn_of_slower_path(reason: str) -> None:
    """Warns, once for each reason, that torch stands in for the C++ kernels."""
    warnings.warn(f"CPU kernels run on torch's slower path: {reason}", RuntimeWarning, stacklevel=2)


def _library(source: Path, defines: tuple[str, ...], form: Form | None = None) -> ctypes.CDLL | str:
    """The library, in the current form if none is named; or why there is none."""
    compiler = build.compiler_or_reason()
    flags = (*build.FLAGS, f"-march={(form or _form).processor}", *(f"-D{define}" for define in defines))
    return compiler if isinstance(compiler, str) else build.kernel_library(source, flags, compiler)


@functools.cache
def openmp_team() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch itself computes with; None without one.

    It is looked up in torch's own library, since other packages bring OpenMP runtimes of theirs into the process.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
