"""The tables of tuned configs that come with the library, one file a device, and how they are made."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cache import SCHEMA, Entry, Key, contents, publish, warn_once
from .device import Fingerprint
from .keys import canonical
from .space import Config

TABLES = Path(__file__).parent / "tables"


def shipped(environment: Fingerprint, key: Key) -> tuple[Config, str] | None:
    """A config from the tables that come with the library: this GPU's, else one of the same compute capability."""
    readable = tables()
    same = [table for table in readable if table["device"] == environment.device]
    kin = [table for table in readable if table["capability"] == environment.capability and table not in same]
    for table in (*same, *kin):
        config = table["configs"].get(canonical(key))
        if config is not None:
            return config, f"shipped table of {table['device']}"
    return None


def export(environment: Fingerprint, entries: list[Entry], folder: Path | None = None) -> Path:
    """Writes a device's shipped table: these entries, and those it had of other kernels and problems.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = TABLES if folder is None else folder
    name = re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-")
    path = folder / f"{name}.json"
    had = _table(path)["entries"] if path.exists() else []
    merged = {canonical([e["key"]["kernel"], e["key"]["problem"]]): e for e in had}
    for entry in entries:
        shipped_entry = {"key": entry.key, "config": entry.config, "gain": entry.evidence.get("gain")}
        merged[canonical([entry.key["kernel"], entry.key["problem"]])] = shipped_entry
    content = {
        "schema": SCHEMA,
        "device": environment.device,
        "capability": environment.capability,
        "environment": asdict(environment),
        "entries": [merged[name] for name in sorted(merged)],
    }
    publish(path, content)
    tables.cache_clear()
    return path


@functools.cache
def tables() -> list[dict[str, Any]]:
    """The shipped tables that can be read."""
    readable = []
    for path in sorted(TABLES.glob("*.json")):
        try:
            readable.append(_table(path))
        except (OSError, ValueError) as error:
            warn_once(f"tropigrad: ignoring the shipped table {path}: {error}; reinstall tropigrad, or remove the file")
    return readable


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(contents(path))
        configs = {canonical(entry["key"]): entry["config"] for entry in table["entries"]}
        return {name: table[name] for name in ("device", "capability", "entries")} | {"configs": configs}
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
