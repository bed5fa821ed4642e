"""The classifiers of the study: what they see, how they are tuned and judged, and the sign of the shift."""

import numpy as np
import pytest
import torch

from tropigrad.nn import ExplicitSoftmax
from tropigrad.perf_reports.data import Dataset
from tropigrad.perf_reports.studies.explicit import methods
from tropigrad.perf_reports.studies.explicit.methods import AdamSoftmax, Arm, Split, judged, of_images, of_speeches
from tropigrad.perf_reports.texts import read_speeches


def test_images_are_grey_levels_and_their_parts_share_no_row():
    x = torch.arange(40, dtype=torch.float32).reshape(20, 2) / 255
    dataset = Dataset(x, torch.arange(20) % 2, x[:4], torch.zeros(4, dtype=torch.int64), "ramp")
    split = of_images(dataset, 255, seed=0, valid=5)
    assert split.train[0].dtype == np.uint8
    assert (len(split.train[1]), len(split.valid[1]), len(split.test[1])) == (15, 5, 4)
    rows = np.concatenate([split.train[0], split.valid[0]])
    assert sorted(rows.ravel().tolist()) == list(range(40))
    assert split.learning[0].shape == (20, 2)


def test_speeches_of_the_speakers_with_the_most(tmp_path, play):
    pytest.importorskip("scipy", reason="bags of words are CSR")
    (tmp_path / "input.txt").write_text(play + "\n\nROMEO:\nlove.")
    split = of_speeches(read_speeches(tmp_path), seed=0, most=2)
    assert split.classes == 2
    assert (len(split.train[1]), len(split.valid[1]), len(split.test[1])) == (56, 8, 17)
    assert np.bincount(np.concatenate([split.learning[1], split.test[1]])).tolist() == [41, 40]
    assert split.learning[0].sum() + split.test[0].sum() == 120 * 9 * 2 // 3 + 1


def test_judged_by_probability_and_by_the_largest(split):
    model = ExplicitSoftmax().fit(*split.train)
    loss, accuracy = judged(model, split.test)
    p = model.predict_proba(split.test[0])
    assert loss == pytest.approx(-np.log(p[np.arange(50), split.test[1]]).mean(), rel=1e-5)
    assert accuracy == model.score(*split.test)


def test_a_class_that_a_model_does_not_know_has_next_to_no_probability(split):
    x, y = split.train
    model = ExplicitSoftmax().fit(x[y < 2], y[y < 2])
    unknown = x[:3], np.full(3, 2)
    assert judged(model, unknown) == (pytest.approx(-np.log(1e-30)), 0.0)


def test_an_arm_takes_the_settings_of_the_least_held_out_loss(split):
    arm = Arm("explicit", "ours", ExplicitSoftmax, {"scale": (1.0, 8.0, 512.0), "smoothing": (0.1,)})
    record = methods.tuned(arm, split, seed=0)
    losses = {
        scale: judged(ExplicitSoftmax(scale, 0.1).fit(*split.train), split.valid)[0] for scale in (1.0, 8.0, 512.0)
    }
    best = min(losses, key=lambda scale: losses[scale])
    assert record["settings"] == {"scale": str(best), "smoothing": "0.1"}
    assert len(set(losses.values())) == 3
    assert record["cross_entropy"] == judged(ExplicitSoftmax(best, 0.1).fit(*split.learning), split.test)[0]


def test_its_accuracy_is_that_of_the_settings_of_the_best_held_out_accuracy(split):
    arm = Arm("explicit", "ours", ExplicitSoftmax, {"scale": (1.0, 8.0), "smoothing": (0.1, 1e4)})
    record = methods.tuned(arm, split, seed=0)
    right = {
        (scale, smoothing): judged(ExplicitSoftmax(scale, smoothing).fit(*split.train), split.valid)[1]
        for scale in (1.0, 8.0)
        for smoothing in (0.1, 1e4)
    }
    scale, smoothing = max(right, key=lambda pair: right[pair])
    assert record["settings_of_accuracy"] == {"scale": str(scale), "smoothing": str(smoothing)}
    assert record["accuracy"] == judged(ExplicitSoftmax(scale, smoothing).fit(*split.learning), split.test)[1]


def test_adam_learns_the_linear_softmax(split):
    train = (split.train[0] * 20).astype(np.uint8), split.train[1]
    model = AdamSoftmax(rate=0.03, batch=32, epochs=20, seed=0).fit(*train)
    base = np.bincount(train[1]).max() / len(train[1])
    loss, accuracy = judged(model, train)
    assert accuracy > base + 0.1
    assert loss < 0.8 * np.log(3)


@pytest.mark.parametrize("dataset", ["digits", "speakers"])
def test_every_arm_runs(split, dataset):
    pytest.importorskip("sklearn", reason="scikit-learn has the rivals")
    for arm in methods.arms(dataset, seed=0):
        settings = next(iter(arm.settings())) | ({"hidden": 6} if "MLP" in arm.name else {})
        x, y = split.train
        model = arm.make(**settings).fit(x.astype(np.float64) if arm.as_float else x, y)
        assert judged(model, split.train)[1] > 0.3, arm.name


def test_the_minus_sign_is_the_models_own_and_wins_on_skewed_classes(bags):
    x, y = bags(classes=4, features=30, rows=1200, seed=3)
    x = (x + np.random.default_rng(0).integers(0, 2, x.shape)).astype(np.uint8)
    skewed = Split(*((x[a:b], y[a:b]) for a, b in ((0, 800), (800, 1000), (1000, 1200))), name="skewed")
    records = {(r["sign"], r["chosen"]): r for r in methods.signs(skewed, seed=0, scale=8.0)}
    assert len(records) == 9
    own = ExplicitSoftmax(8.0, 0.1).fit(*skewed.train)
    loss, accuracy = judged(own, skewed.test)
    assert records["minus", "nothing"]["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert records["minus", "nothing"]["accuracy"] == accuracy
    for other in ("none", "plus"):
        assert records["minus", "nothing"]["cross_entropy"] < records[other, "nothing"]["cross_entropy"]
