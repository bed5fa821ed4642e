"""Text for whatever encoding the output has: a terminal, a pipe or a log may take nothing but ASCII.

Signs that have a usual spelling in ASCII get it, "µs" becomes "us" and "λ" "lambda"; anything else is escaped, "\\xe9".
JSON stays exact: there the escapes are its own.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from typing import Any

_SPELLINGS = {
    "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "‑": "-", "…": "...", "→": "->", "±": "+/-", "≈": "~",
    "≤": "<=", "≥": ">=", "≠": "!=", "µ": "u", "μ": "u", "²": "^2", "³": "^3", "√": "sqrt ", "½": "1/2", "‖": "||",
    "∞": "inf", "Σ": "sum ", "Π": "prod ", "∈": "in", "Δ": "Delta", "λ": "lambda", "γ": "gamma", "σ": "sigma",
    "ℓ": "l", "ψ": "psi", "⊗": "(x)", "⊕": "(+)", "“": '"', "”": '"', "‘": "'", "’": "'",
}  # fmt: skip
_HANDLER = "tropigrad.spelled"


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if sign in _SPELLINGS:
        return _SPELLINGS[sign], error.start + 1
    return codecs.backslashreplace_errors(UnicodeEncodeError(error.encoding, sign, 0, 1, ""))[0], error.start + 1


codecs.register_error(_HANDLER, _spelled)


def take_any_encoding() -> None:
    """Spell what is printed from now on in the signs that stdout and stderr have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def as_json(value: Any, **options: Any) -> str:
    """JSON for stdout: signs as they are where it has them all, else in JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=2, **options)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2, **options)
    return text
