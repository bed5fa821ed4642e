"""Tables as files of pandas: Parquet, or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..whole_files import replace
from .commands import BadRequest


def write_frame(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as Parquet or as CSV, whichever the ending of the path names.

    Raises:
        BadRequest: pandas, or what it needs for Parquet, is missing.
    """
    try:
        import pandas

        frame = pandas.DataFrame(table)
        write = frame.to_parquet if path.suffix == ".parquet" else frame.to_csv
        replace(path, lambda fresh: write(fresh, index=False))
    except ImportError as error:
        raise BadRequest(f"{path}: {error}; pip install 'tropigrad[reports]' pyarrow, or export to .csv") from error
