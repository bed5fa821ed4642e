"""Where there is no GPU, Triton's interpreter stands in for one; it must be chosen before triton is imported."""

import functools
import inspect
import json
import os
import signal
import subprocess
import sys
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


_RANK = """
import json, sys
from datetime import timedelta
import torch, torch.distributed as dist

folder, rank, ranks, said = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), {}
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), ranks, rank)
group = dist.group.WORLD
"""


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory):
    """`run_ranks(2, code)`: the dict `said` of each of two processes of a gloo group that run the code, through JSON.

    The code finds `rank`, `ranks`, `group`, a `folder` that all share, `torch` and `dist`.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")

    def run(ranks, code, folder=None):
        folder = folder or tmp_path_factory.mktemp("ranks")
        script = _RANK + code + "\ndist.destroy_process_group()\nprint(json.dumps(said))\n"
        commands = [[sys.executable, "-c", script, str(folder), str(rank), str(ranks)] for rank in range(ranks)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, **pipes) for command in commands]
        try:
            outputs = [process.communicate(timeout=300) for process in running]
        finally:
            for process in running:
                process.kill()
        for process, (_, errors) in zip(running, outputs, strict=True):
            assert process.returncode == 0, errors
        return [json.loads(output) for output, _ in outputs]

    return run
