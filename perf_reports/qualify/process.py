"""A process that answers requests, one at a time, and may be lost at any of them. Knows nothing of kernels.

Requests go to its stdin and messages come from its stdout, a JSON object a line; what it prints besides goes to stderr.
The last message of a request has the key "end". Where stdin ends, as the parent has died, the process is to end too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

LAST_WORDS = 8192  # bytes of stderr that are looked at


class Lost(Exception):
    """The process is no more; the message says how it ended."""


class Process:
    """One process; after `Lost`, or `close`, it answers no more.

    Args:
        command: what to run.
        environment: the whole of it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environment),
            start_new_session=os.name == "posix",  # Ctrl-C is the parent's to answer, and compilers die with it
        )
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any], limit_s: float) -> Iterator[dict[str, Any]]:
        """The messages that answer a request, the last of which has the key "end".

        Raises:
            Lost: the process ended first, or took longer than limit_s and was killed.
        """
        end = perf_counter() + limit_s
        assert self._process.stdin
        # what has died is told below
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, end - perf_counter()))
            except queue.Empty:
                self.close()
                raise Lost(f"no end after {limit_s:.3g} s") from None
            if message is None:
                self._process.wait()
                reason = self._why()
                self.close()
                raise Lost(reason)
            yield message
            if "end" in message:
                return

    def close(self) -> None:
        """Kill it, with whatever it has started."""
        if self._errors.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it: nobody can do more
            self._process.wait(timeout=10)
        for pipe in (self._process.stdin, self._errors):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # what was killed in the middle of a line
                    self._messages.put(json.loads(line))
        self._messages.put(None)

    def _why(self) -> str:
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS))
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}" + (f": {words[-1].strip()}" if words else "")
