"""The separability test: right against all dichotomies of the cube, with certificates that hold in exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from tropigrad.optim.target_propagation import exact
from tropigrad.optim.target_propagation.separability import separable_classes, separable_unit


def with_ones(x):
    return np.hstack([x, np.ones((len(x), 1))])


def cube(bits):
    return with_ones(np.array(list(itertools.product([0.0, 1.0], repeat=bits))))


def check_exactly(rows, labels, classes, test):
    """Whether the answer is proved by what it carries, summed here in fractions and nowhere in the library."""
    if test.status == "separable":
        for row, label in zip(rows, labels, strict=True):
            z = [
                sum(Fraction(a) * Fraction(v) for a, v in zip(row, column, strict=True)) for column in test.separator.T
            ]
            assert all(z[label] > z[k] for k in range(classes) if k != label)
        return
    proof = exact.combination(rows, test.certificate)
    assert proof is not None
    points, mu = proof
    total = np.zeros((rows.shape[1], classes), dtype=object)
    for point, share in zip(points, mu, strict=True):
        assert share > 0
        row = np.array([Fraction(a) for a in rows[test.certificate.rows[point]]])
        total[:, test.certificate.wanted[point]] += share * row
        total[:, test.certificate.other[point]] -= share * row
        assert labels[test.certificate.rows[point]] == test.certificate.wanted[point]
    assert sum(mu) == 1
    assert not total.any()


@pytest.mark.parametrize(("bits", "separable"), [(2, 14), (3, 104)])
def test_threshold_functions_of_the_cube_are_counted(bits, separable):
    rows = cube(bits)
    count = 0
    for labels in itertools.product([0, 1], repeat=len(rows)):
        labels = np.array(labels)
        test = separable_classes(rows, labels, 2)
        assert test.status != "undecided"
        check_exactly(rows, labels, 2, test)
        count += test.status == "separable"
    assert count == separable


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes_are_separated_or_refused_with_a_certificate(classes):
    generator = np.random.default_rng(classes)
    answers = set()
    for spread in (0.3, 1.0, 2.0, 4.0):
        labels = np.arange(40) % classes
        centres = 3 * generator.standard_normal((classes, 4))
        rows = with_ones(centres[labels] + spread * generator.standard_normal((40, 4)))
        test = separable_classes(rows, labels, classes)
        check_exactly(rows, labels, classes, test)
        answers.add(test.status)
    assert answers == {"separable", "inseparable"}


def test_a_unit_is_a_pair_of_classes():
    rows, targets = cube(2), np.array([-1.0, 1, 1, 1])
    test = separable_unit(rows, targets)
    assert test.separator is not None
    assert (targets * (rows @ test.separator) > 0).all()
    xor = separable_unit(rows, np.array([-1.0, 1, 1, -1]))
    assert xor.certificate is not None
    assert (xor.status, sorted(xor.certificate.rows)) == ("inseparable", [0, 1, 2, 3])
    assert xor.certificate.norm <= 1e-9
    assert xor.certificate.weights.sum() == pytest.approx(1)


def test_equal_rows_and_rows_of_zeros_contradict_themselves():
    rows = np.array([[1.0, 2], [3, 4], [1, 2]])
    test = separable_unit(rows, np.array([1.0, 1, -1]))
    assert test.certificate is not None
    assert sorted(test.certificate.rows) == [0, 2]
    test = separable_unit(np.zeros((1, 2)), np.ones(1))
    assert test.certificate is not None
    assert (test.status, list(test.certificate.rows)) == ("inseparable", [0])


def test_a_test_that_is_cut_short_is_undecided():
    generator = np.random.default_rng(0)
    rows = with_ones(generator.standard_normal((50, 3)))
    test = separable_unit(rows, np.where(np.arange(50) % 2, 1.0, -1.0), iterations=2)
    assert (test.status, test.separator, test.certificate) == ("undecided", None, None)


def test_a_separator_that_rounding_makes_is_not_taken_for_a_proof():
    rows, labels = np.array([[1.0, 1e-20, 1.0]]), np.array([0])
    separator = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert exact.separates(rows, labels, separator)  # by 1e-20, which floating point loses: 1 + 1e-20 - 1 is 0
    assert not exact.separates(rows, labels, -separator)
    assert not exact.separates(rows, labels, np.zeros((3, 2)))
