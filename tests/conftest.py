"""Where there is no GPU, Triton's interpreter stands in for one; it must be chosen before triton is imported."""

import os
import signal
import threading

import pytest
import torch

# a shell's background jobs ignore Ctrl-C, and so would the tests of it and the programs that they start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
