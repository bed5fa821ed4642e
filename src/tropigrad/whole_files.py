"""Files that a reader sees whole, the old one or the new one, whatever ends the program that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Write beside it, then put in its place by one rename.

    Args:
        write: called with the path of a file that is not there yet, in the same folder.

    Raises:
        OSError: the folder is not there, path is a folder, or the disk refuses. The old file stays as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the path of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    fresh = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash of the machine could leave the new name on an empty file
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path
