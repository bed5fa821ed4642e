"""Texts of the studies: characters or words as tokens, split once; and the speeches of a play as bags of words.

What cannot be read is a DataError: one line that names the file, what came and what was expected.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from .data import DataError

Unit = Literal["characters", "words"]
END, UNKNOWN = "<eos>", "<unk>"
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Text:
    """Tokens [T] int64 of three parts, in [0, V), and the V words that they stand for."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    words: list[str]
    unit: Unit
    name: str

    @property
    def vocabulary(self) -> int:
        return len(self.words)

    def spelled(self, tokens: list[int]) -> str:
        """The text that tokens stand for; a line ends at <eos>."""
        words = [self.words[token] for token in tokens]
        if self.unit == "characters":
            return "".join(words)
        return " ".join(words).replace(f" {END} ", "\n").replace(END, "").strip()


def read_text(path: Path, unit: Unit | None = None) -> Text:
    """Reads a file of text, of which the last tenth is the test and the tenth before that validation; or a folder.

    Args:
        path: a UTF-8 file; or a folder with train.txt, valid.txt and test.txt, or with input.txt.
        unit: "words" are parted by white space, and each line ends with a word <eos>; None takes them where the text
            holds <unk>, as a text that was made into words does, else characters. Words or characters that training
            lacks become <unk>.

    Raises:
        DataError: nothing there, no text, or too short a text.
    """
    if path.is_dir():
        if all((path / f"{part}.txt").is_file() for part in _PARTS):
            texts = [_read(path / f"{part}.txt") for part in _PARTS]
        elif (path / "input.txt").is_file():
            texts = _tenths(_read(path / "input.txt"))
        else:
            raise DataError(
                f"{path}: neither train.txt, valid.txt and test.txt nor input.txt; expected a folder of text"
            )
    else:
        texts = _tenths(_read(path))
    unit = unit or ("words" if UNKNOWN in texts[0] else "characters")
    parts = [_units(text, unit) for text in texts]
    if min(map(len, parts)) < 10:
        raise DataError(
            f"{path}: parts of {', '.join(str(len(part)) for part in parts)} {unit}; expected at least 10 each"
        )
    places: dict[str, int] = {}
    for word in parts[0]:
        places.setdefault(word, len(places))
    if any(word not in places for part in parts[1:] for word in part):
        places.setdefault(UNKNOWN, len(places))
    unknown = places.get(UNKNOWN, -1)
    tokens = [np.array([places.get(word, unknown) for word in part]) for part in parts]
    return Text(*tokens, words=list(places), unit=unit, name=path.name if path.suffix else path.resolve().name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected a text in UTF-8") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected a text in UTF-8") from None


def _tenths(text: str) -> list[str]:
    ends = [0, len(text) * 8 // 10, len(text) * 9 // 10, len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


def _units(text: str, unit: Unit) -> list[str]:
    if unit == "characters":
        return list(text)
    return [word for line in text.splitlines() for word in (*line.split(), END)]


@dataclass(frozen=True)
class Speeches:
    """Bags of words as CSR: row n has the counts of `words` in a speech, and y[n] is its speaker's index in `names`."""

    indptr: np.ndarray  # [N + 1]
    indices: np.ndarray
    counts: np.ndarray
    y: np.ndarray  # [N] int64
    names: list[str]
    words: list[str]

    def csr(self):
        """scipy.sparse.csr_array [N, D] of int64."""
        from scipy import sparse

        shape = (len(self.y), len(self.words))
        return sparse.csr_array((self.counts, self.indices, self.indptr), shape=shape)


def read_speeches(path: Path, least: int = 20) -> Speeches:
    """Reads a play: blocks parted by an empty line, of which the first line is the speaker's name and a colon.

    Args:
        path: a UTF-8 file, or a folder with input.txt.
        least: speeches that a speaker has at the least; others are left out.

    Raises:
        DataError: nothing there, no text, or fewer than two such speakers.
    """
    text = _read(path / "input.txt" if path.is_dir() else path)
    speeches = []
    for block in text.split("\n\n"):
        name, colon, speech = block.strip().partition(":\n")
        words = re.findall(r"[a-z']+", speech.lower())
        if colon and words:
            speeches.append((name, words))
    counts = Counter(name for name, _ in speeches)
    names = sorted(name for name, n in counts.items() if n >= least)
    if len(names) < 2:
        raise DataError(
            f"{path}: {len(names)} speaker(s) of {least} speeches or more; expected a play, with at least two"
        )
    place = {name: i for i, name in enumerate(names)}
    kept = [(place[name], Counter(words)) for name, words in speeches if name in place]
    vocabulary = {word: i for i, word in enumerate(sorted({word for _, bag in kept for word in bag}))}
    rows = [sorted((vocabulary[word], n) for word, n in bag.items()) for _, bag in kept]
    return Speeches(
        indptr=np.cumsum([0, *map(len, rows)]),
        indices=np.array([i for row in rows for i, _ in row]),
        counts=np.array([n for row in rows for _, n in row]),
        y=np.array([label for label, _ in kept]),
        names=names,
        words=list(vocabulary),
    )
