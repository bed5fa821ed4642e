"""Tuned configs on disk, one file an entry:

    <root>/v1/<environment>/manifest.json               what the environment is, for people
    <root>/v1/<environment>/entries/<key>.json          a config, the key it answers, and what was measured
    <root>/v1/<environment>/journal/<key>.jsonl         a search under way, or cut off: one line a rival

An entry is written to a temporary file and put in place by one rename, so a reader sees a whole entry or none. Each
holds its environment, its key and a checksum; one that cannot be read, is damaged, or answers another key, is a miss
and one warning. Nothing here raises because of what is on the disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .device import Fingerprint
from .keys import canonical
from .space import Config

SCHEMA = "v1"
LARGEST_ENTRY = 1 << 22  # bytes; what is larger was not written here

Key = Mapping[str, Any]  # {"kernel": ..., "source": sha256, "problem": {...}}


@dataclass(frozen=True)
class Entry:
    """A stored config, and the measurements that it was chosen by (see contest.py)."""

    key: Key
    config: Config
    evidence: Mapping[str, Any] = field(default_factory=dict)


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

    def environment_folder(self, environment: Fingerprint) -> Path:
        return self.root / SCHEMA / environment.hash

    def path(self, environment: Fingerprint, key: Key) -> Path:
        return self.environment_folder(environment) / "entries" / f"{_digest(key)}.json"

    def journal(self, environment: Fingerprint, key: Key) -> Journal:
        """Where a search for this key notes what it has measured."""
        return Journal(self.environment_folder(environment) / "journal" / f"{_digest(key)}.jsonl", key)

    def get(self, environment: Fingerprint, key: Key) -> Entry | None:
        """The entry stored under a key, or None."""
        path = self.path(environment, key)
        try:
            entry = _read(path, environment.hash)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._miss(path, str(error))
        if canonical(entry.key) != canonical(key):
            return self._miss(path, "it answers another key")
        return entry

    def put(
        self, environment: Fingerprint, key: Key, config: Config, evidence: Mapping[str, Any] | None = None
    ) -> bool:
        """Publishes a config, whole or not at all; False, with a warning, where the disk refuses."""
        content = {"environment": environment.hash, **asdict(Entry(key, config, evidence or {}))}
        path, manifest = self.path(environment, key), self.environment_folder(environment) / "manifest.json"
        try:
            if not manifest.exists():
                publish(manifest, {"schema": SCHEMA, **asdict(environment)})
            publish(path, {**content, "checksum": _checksum(content)})
        except OSError as error:
            warnings.warn(f"tropigrad: the config was not stored in {path}: {error}", RuntimeWarning, stacklevel=2)
            return False
        return True

    def note(self, environment: Fingerprint, name: str, content: Any) -> bool:
        """Keeps more about an environment than its configs; False, with a warning, where the disk refuses."""
        path = self.environment_folder(environment) / f"{name}.json"
        try:
            publish(path, {"content": content, "checksum": _checksum({"content": content})})
        except OSError as error:
            warnings.warn(f"tropigrad: {name} was not stored in {path}: {error}", RuntimeWarning, stacklevel=2)
            return False
        return True

    def noted(self, environment: Fingerprint, name: str) -> Any | None:
        """Returns what `note` kept; None where there is nothing that can be read."""
        try:
            note = json.loads(contents(self.environment_folder(environment) / f"{name}.json"))
            return note["content"] if note["checksum"] == _checksum({"content": note["content"]}) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def entries(self, environment: Fingerprint | None = None) -> Iterator[tuple[Path, Entry | str]]:
        """Every entry file of an environment, or of all, with what it holds, or why it cannot be read."""
        folder = "*" if environment is None else environment.hash
        for path in sorted((self.root / SCHEMA).glob(f"{folder}/entries/*.json")):
            try:
                entry = _read(path, path.parent.parent.name)
                yield path, entry if path.stem == _digest(entry.key) else "it answers another key"
            except (OSError, ValueError) as error:
                yield path, str(error)

    def whole(self, environment: Fingerprint) -> list[Entry]:
        """The entries of an environment that can be read."""
        return [entry for _, entry in self.entries(environment) if isinstance(entry, Entry)]

    def manifest(self, environment_hash: str) -> dict[str, Any]:
        """Describes an environment, as `put` wrote it down; empty where that cannot be read."""
        try:
            manifest = json.loads(contents(self.root / SCHEMA / environment_hash / "manifest.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def left_over(self) -> list[Path]:
        """Temporary files of writers that were killed."""
        return sorted((self.root / SCHEMA).rglob("*.tmp"))

    def clear(self, environment: Fingerprint | None = None) -> int:
        """Removes every entry and journal of an environment, or of all; returns how many entries there were.

        Raises:
            OSError: the disk refuses.
        """
        folder = self.root / SCHEMA if environment is None else self.environment_folder(environment)
        count = sum(1 for _ in self.entries(environment))
        if folder.exists():
            shutil.rmtree(folder)
        return count

    @staticmethod
    def _miss(path: Path, reason: str) -> None:
        warn_once(f"tropigrad: ignoring the tuned config in {path}: {reason}; delete the file to be rid of this")


class Journal:
    """The measurements of a search so far, on the disk when `add` returns: a killed search goes on from here.

    A line that cannot be read is dropped. A disk that refuses costs the resumption, nothing else.
    """

    def __init__(self, path: Path, key: Key):
        self.path, self._key = path, canonical(key)

    def read(self) -> list[dict[str, Any]]:
        try:
            lines = contents(self.path).decode(errors="replace").splitlines()
        except OSError:
            return []
        records = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and record.pop("of", None) == self._key:
                    records.append(record)
        return records

    def add(self, *records: Mapping[str, Any]) -> None:
        text = "".join(json.dumps({"of": self._key, **record}) + "\n" for record in records)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                # a killed writer's last line must not swallow this one
                file.write("\n" + text)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def store() -> Store:
    """The user's own entries."""
    return Store(cache_dir())


def _digest(key: Key) -> str:
    return hashlib.sha256(canonical(key).encode()).hexdigest()[:32]


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


def contents(path: Path) -> bytes:
    # not blocking: what lies there may be a pipe
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        return file.read(LARGEST_ENTRY) or b""


def _read(path: Path, environment: str) -> Entry:
    """The entry in a file.

    Raises:
        OSError, ValueError: it cannot be read, is damaged, or belongs to another environment; the message says which.
    """
    try:
        content = json.loads(contents(path))
        checksum = content.pop("checksum")
        entry = Entry(dict(content["key"]), dict(content["config"]), dict(content["evidence"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None
    if checksum != _checksum(content):
        raise ValueError("it is damaged (its checksum does not match)")
    if content["environment"] != environment:
        raise ValueError("it is of another environment")
    return entry


def publish(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: the disk refuses; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x") as file:
            file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@functools.cache
def warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
