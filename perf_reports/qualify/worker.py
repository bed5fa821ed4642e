"""The process that carries out items, as process.py talks to it: python -m tropigrad.perf_reports.qualify.worker.

    {"start": true}                      -> {"facts": {...}, "end": true}; where false, without the facts
    {"plan": true}                       -> {"plan": [item, ...], "end": true}
    {"item": {...}, "share_s": 1.5}      -> {"record": ...} and {"progress": ...}, then {"end": answer}

Its argument is a JSON object: {"ops": [...], "rehearses": false}.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

LOST = 3  # exit status after an answer that says so


def main(arguments: list[str]) -> int:
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what anything prints is no message
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # first of all: whoever asked may die while torch is imported, or while a kernel hangs
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    def send(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message, default=str) + "\n")
        channel.flush()

    bench = _bench(json.loads(arguments[0]))
    from .item import Item

    while True:
        request = requests.get()
        if "start" in request:
            bench.start()
            send(({"facts": bench.facts()} if request["start"] else {}) | {"end": True})
        elif "plan" in request:
            send({"plan": [asdict(item) for item in bench.plan()], "end": True})
        else:
            item = Item(**(request["item"] | {"about": tuple(request["item"]["about"])}))
            answer = bench.carry_out(item, request["share_s"], send)
            send({"end": vars(answer)})
            if answer.result == "lost":
                return LOST


def _bench(options: Mapping[str, Any]) -> Any:
    if options["rehearses"]:
        from .planted import PlantedBench

        return PlantedBench(options["store"])
    from .bench import Bench

    return Bench(options["ops"])


def _read(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(1)  # nobody is left to answer; and a hanging kernel must not outlive its parent


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a spoilt device context can hang at an ordinary exit
