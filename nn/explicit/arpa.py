"""Bigram counts as an ARPA file: log10 probabilities and back-off weights, one n-gram a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...whole_files import replace

_NEVER = -99.0  # what ARPA files write for log10 0


def write_bigrams(path: str | os.PathLike, words: Sequence[str], counts: Tensor, prior: Tensor, alpha: float) -> None:
    """p(i | h) = (F_hi + α q_i) / (N_h + α) where the pair was seen, else q_i · α / (N_h + α).

    Sentence marks that the words lack are written with probability 0, as readers ask for them. The file is replaced as
    a whole.

    Args:
        counts: F [V, V] sparse_csr.  prior: q [V] float64.
    """
    crow, columns = counts.crow_indices(), counts.col_indices().long()
    values, lengths = counts.values().double(), crow.diff()
    history = torch.repeat_interleave(torch.arange(len(words), device=crow.device), lengths)
    mass = values.new_zeros(len(words)).index_add_(0, history, values)
    log_unigram = prior.log10().tolist()
    backoff = (alpha / (mass + alpha)).log10().tolist()
    log_bigram = ((values + alpha * prior[columns]) / (mass[history] + alpha)).log10()
    marks = [mark for mark in ("<unk>", "<s>", "</s>") if mark not in words]

    def write(fresh: Path) -> None:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(f"\\data\\\nngram 1={len(words) + len(marks)}\nngram 2={len(values)}\n\n\\1-grams:\n")
            file.writelines(f"{_NEVER}\t{mark}\t0\n" for mark in marks)
            file.writelines(
                f"{p:.9f}\t{word}\t{b:.9f}\n" for p, word, b in zip(log_unigram, words, backoff, strict=True)
            )
            file.write("\n\\2-grams:\n")
            bounds = crow.tolist()
            for h, word in enumerate(words):  # a history at a time: the pairs' words never stand in memory at once
                entries = slice(bounds[h], bounds[h + 1])
                pairs = zip(log_bigram[entries].tolist(), columns[entries].tolist(), strict=True)
                file.writelines(f"{p:.9f}\t{word} {words[i]}\n" for p, i in pairs)
            file.write("\n\\end\\\n")

    replace(path, write)
