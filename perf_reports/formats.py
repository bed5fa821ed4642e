"""Files that other tools read: tables of pandas, JSON Lines, XML. Each is replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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


def write_json_lines(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write an object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    replace(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_xml(root: ElementTree.Element, path: Path) -> None:
    """Write an element and what is in it, indented, under XML's declaration."""
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    replace(path, lambda fresh: fresh.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n', encoding="utf-8"))
