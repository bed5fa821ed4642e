"""``python -m tropigrad`` and the ``tropigrad`` command."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"the tropigrad command needs {error.name}: pip install 'tropigrad[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
