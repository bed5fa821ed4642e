"""Small data sets and texts of the study, and a folder that holds them as its files."""

import numpy as np
import pytest

from tropigrad.perf_reports.studies.explicit.methods import Split
from tropigrad.perf_reports.texts import Text


def _bags(classes=3, features=12, rows=240, seed=0):
    """Bags of words from a distribution a class, whose classes are skewed: [N, D] uint8 and labels."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(features, 0.5), classes)
    prior = 1.0 / np.arange(1, classes + 1) ** 2
    y = generator.choice(classes, rows, p=prior / prior.sum())
    y[:classes] = np.arange(classes)
    x = np.stack([generator.multinomial(12, p[c]) for c in y]).astype(np.uint8)
    return x, y


@pytest.fixture
def bags():
    return _bags


@pytest.fixture
def split():
    x, y = _bags()
    return Split(*((x[a:b], y[a:b]) for a, b in ((0, 140), (140, 190), (190, 240))), name="bags")


@pytest.fixture
def text():
    """A text of a chain of order 2 over seven characters, in three parts."""
    generator = np.random.default_rng(0)
    next_of = generator.dirichlet(np.full(7, 0.2), (7, 7))
    tokens = [0, 1]
    for _ in range(4000):
        tokens.append(generator.choice(7, p=next_of[tokens[-2], tokens[-1]]))
    parts = np.split(np.array(tokens), [3000, 3500])
    return Text(*parts, words=list("abcdefg"), unit="characters", name="chain")


@pytest.fixture
def play():
    """A play of three speakers, each with words of their own."""
    generator = np.random.default_rng(0)
    words = {"ROMEO": "love sweet night", "JULIET": "night balcony star", "NURSE": "my lady child"}
    speeches = [
        f"{name}:\n{' '.join(generator.choice(said.split(), 9))}." for _ in range(40) for name, said in words.items()
    ]
    return "\n\n".join(speeches)
