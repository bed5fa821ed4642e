"""scikit-learn's own checks of its conventions, and what its users do with a classifier. None of it is needed."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from tropigrad.nn import ExplicitMLP, ExplicitSoftmax

pytest.importorskip("sklearn", minversion="1.8", reason="scikit-learn's checks of estimators")

from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

# they say that an estimator which does not inherit from theirs may be in for surprises
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ZERO_ROWS = "it feeds rows of zeros, which cannot be scaled to a sum: they are refused by name"


def expected_failures(estimator):
    if isinstance(estimator, ExplicitSoftmax) and not estimator.normalize:
        return {}
    return {"check_estimators_dtypes": ZERO_ROWS, "check_estimator_sparse_tag": ZERO_ROWS}


with warnings.catch_warnings(action="ignore"):
    all_checks = parametrize_with_checks(
        [
            ExplicitSoftmax(),
            ExplicitSoftmax(normalize=False, prior="count"),
            ExplicitSoftmax(smoothing="search", temperature="search"),
            ExplicitMLP(6),
        ],
        expected_failed_checks=expected_failures,
        xfail_strict=True,
    )


@all_checks
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_grid_searches_pipelines_and_clones():
    x, y = load_digits(return_X_y=True)
    x, y = x[:600], y[:600]
    pipeline = make_pipeline(MinMaxScaler(), ExplicitSoftmax())
    search = GridSearchCV(pipeline, {"explicitsoftmax__scale": [0.1, 8]}, cv=3).fit(x, y)
    assert search.best_params_ == {"explicitsoftmax__scale": 8}
    assert search.best_score_ > 0.8
    assert "ExplicitSoftmax" in search._repr_html_()
    assert is_classifier(ExplicitSoftmax())
    copied = clone(ExplicitMLP((20, 10), codes="labels", scale=8))
    assert repr(copied) == "ExplicitMLP(hidden=(20, 10), codes='labels', scale=8)"
    assert cross_val_score(ExplicitMLP(20), x, y, cv=3).mean() > 0.8


def test_words_of_documents():
    texts, names = ["red green", "green blue green", "one two", "two three"], ["colours"] * 2 + ["numbers"] * 2
    model = make_pipeline(CountVectorizer(), ExplicitSoftmax()).fit(texts, names)
    assert model.predict(["blue red", "three one"]).tolist() == ["colours", "numbers"]


def test_not_fitted_is_their_error():
    with pytest.raises(NotFittedError):
        ExplicitSoftmax().predict(np.ones((1, 2)))


def test_nothing_of_theirs_is_needed():
    program = """
import sys
from tropigrad.nn import ExplicitMLP, ExplicitSoftmax
assert not any(name.split(".")[0] in ("sklearn", "scipy") for name in sys.modules)
sys.modules["sklearn"] = sys.modules["sklearn.exceptions"] = sys.modules["scipy"] = None
x, y = [[1, 2], [3, 1], [2, 2], [5, 1]] * 5, list("abab") * 5
for model in (ExplicitSoftmax(temperature="search"), ExplicitMLP(2)):
    try:
        model.predict(x)
    except ValueError as error:
        assert isinstance(error, AttributeError) and "not fitted" in str(error)
    print(model.fit(x, y).score(x, y), model.fit(x, [[name] for name in y]).predict(x[:2]).tolist())
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert ran.stderr == ""
    assert ran.stdout == "1.0 ['a', 'b']\n" * 2
