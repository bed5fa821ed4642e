"""Where there is no GPU, Triton's interpreter stands in for one; it must be chosen before triton is imported."""

import functools
import inspect
import os
import signal
import threading

import pytest
import torch

# a shell's background jobs ignore Ctrl-C, and so would the tests of it and the programs that they start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _remember_builtins():
    """Has Triton's interpreter list the builtins of a module once, not at each call of a function inside a kernel.

    Those lists are half of an interpreted kernel's time.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return

    @functools.cache
    def names(package):
        return [name for name, member in inspect.getmembers(package) if interpreter.tl.core.is_builtin(member)]

    def patch_builtin(package, *rest):
        for name in names(package):
            member = getattr(package, name)
            if interpreter.tl.core.is_builtin(member):  # not where an outer call has replaced it
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch_builtin


if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    _remember_builtins()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers fill the cores already


def pytest_report_header():
    from tropigrad.kernels.runtime import native

    return f"C++ kernels: {native.form()}"


@pytest.fixture(autouse=True)
def _own_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def set_backend():
    """`set_backend("torch")`: TROPIGRAD_BACKEND until the test ends, as if it had been set before the import."""
    from tropigrad import autotune

    with pytest.MonkeyPatch.context() as patch:
        yield lambda name: (patch.setenv("TROPIGRAD_BACKEND", name), autotune.reload())
    autotune.reload()
