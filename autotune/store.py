"""Tuned configs on disk: `<root>/v1/<environment hash>/entries/<key hash>.json`, one file an entry.

An entry is written to a temporary file and put in place by one rename, so a reader sees a whole entry or none. Each
file holds the key it answers; one that cannot be read, or answers another key, is a miss and one warning.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .device import Fingerprint
from .space import Config

SCHEMA = "v1"
TABLES = Path(__file__).parent / "tables"

Key = Mapping[str, Any]  # {"kernel": ..., "source": sha256, "problem": {...}}


def cache_dir() -> Path:
    """$TROPIGRAD_CACHE_DIR, else `tropigrad` in the user's cache folder, XDG's or ~/.cache. Not created here."""
    chosen = os.environ.get("TROPIGRAD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "tropigrad"


class Store:
    """The entries under one root."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, environment: Fingerprint, key: Key) -> Path:
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]
        return self.root / SCHEMA / environment.hash / "entries" / f"{digest}.json"

    def get(self, environment: Fingerprint, key: Key) -> Config | None:
        """The config stored under a key, or None."""
        path = self.path(environment, key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._miss(path, str(error))
        try:
            entry = json.loads(text)
            if _canonical(entry["key"]) != _canonical(key):
                return self._miss(path, "it answers another key")
            return dict(entry["config"])
        except (ValueError, KeyError, TypeError) as error:
            return self._miss(path, f"{type(error).__name__}: {error}")

    def put(self, environment: Fingerprint, key: Key, config: Config) -> bool:
        """Publishes a config, whole or not at all; False, with a warning, where the disk refuses."""
        path = self.path(environment, key)
        entry = json.dumps({"key": key, "config": config}, indent=1, sort_keys=True)
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                file.write(entry)
            os.replace(temporary, path)
        except OSError as error:
            warnings.warn(f"tropigrad: the config was not stored in {path}: {error}", RuntimeWarning, stacklevel=2)
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return False
        return True

    @staticmethod
    def _miss(path: Path, reason: str) -> None:
        _warn_once(f"tropigrad: ignoring the tuned config in {path}: {reason}; delete the file to be rid of this")


def store() -> Store:
    """The user's own entries."""
    return Store(cache_dir())


def shipped(environment: Fingerprint, key: Key) -> tuple[Config, str] | None:
    """A config from the tables that come with the library: this GPU's, else one of the same compute capability."""
    tables = _tables()
    same = [table for table in tables if table["device"] == environment.device]
    kin = [table for table in tables if table["capability"] == environment.capability and table not in same]
    for table in (*same, *kin):
        config = table["entries"].get(_canonical(key))
        if config is not None:
            return config, f"shipped table of {table['device']}"
    return None


@functools.cache
def _tables() -> list[dict[str, Any]]:
    tables = []
    for path in sorted(TABLES.glob("*.json")):
        table = json.loads(path.read_text())
        table["entries"] = {_canonical(entry["key"]): entry["config"] for entry in table["entries"]}
        tables.append(table)
    return tables


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
