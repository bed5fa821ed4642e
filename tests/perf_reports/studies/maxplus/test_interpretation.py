"""The units and pixels that decide: the winners are the network's own, and the command writes its files."""

import json

import pytest
import torch

from tropigrad.nn import LinearMinMax
from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.maxplus import interpretation


def network():
    x = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
    model = LinearMinMax(16, 12, 3)
    return model, x, model.init_kmedoids(x, torch.arange(60) % 3, scale=2.0)


def test_a_path_makes_its_score():
    model, x, _ = network()
    made = interpretation.decisions(model, x, batch=7)
    assert torch.equal(made.scores, model(x))
    z = model.linear(x).gather(1, made.leaves)
    of_class = torch.arange(3).expand(60, 3)
    path = z + model.W1[made.units, made.leaves] + model.W2[of_class, made.units]
    assert torch.equal(path, made.scores)
    assert torch.equal(made.deciding_units(), made.units[torch.arange(60), made.classes])
    assert torch.equal(made.deciding_leaves(), made.leaves[torch.arange(60), made.classes])


def test_at_the_start_units_are_images_of_their_medoids():
    model, x, start = network()
    assert torch.equal(interpretation.images(model), x[start.medoids])


def test_samples_that_are_shown_are_right_but_one():
    model, x, _ = network()
    made = interpretation.decisions(model, x)
    y = made.classes.clone()
    y[5] = (y[5] + 1) % 3
    *right, wrong = interpretation.chosen_samples(made, y)
    assert wrong == 5
    assert len(set(right)) == len(right) == 3
    assert (made.classes[right] == y[right]).all()


def test_command_writes_records_and_picture(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    words = [str(tmp_path), "--data", "digits", "--hidden", "20", "--epochs", "10"]
    assert interpretation.main(words) == 0
    head, *rows = [json.loads(line) for line in (tmp_path / "interpretation-digits.jsonl").read_text().splitlines()]
    assert (head["kind"], head["hidden"], head["epochs"]) == ("run", 20, 10)
    prunings = [r for r in rows if r["kind"] == "pruning"]
    assert [r["network"] for r in prunings] == ["linear-min-max", "Linear → MaxPlus"]
    for r in prunings:
        assert r["parameters_after"] <= r["parameters"]
        assert r["test_accuracy"] > 0.5
    chosen = [r for r in rows if r["kind"] == "decision"]
    assert len(chosen) == interpretation.SAMPLES
    assert all(r["scores"][r["class"]] == max(r["scores"]) for r in chosen)
    assert (tmp_path / "interpretation-digits.png").read_bytes().startswith(b"\x89PNG")
    assert "linear-min-max, digits: W1" in capsys.readouterr().out


def test_a_data_set_without_mistakes_has_no_wrong_sample():
    model, x, _ = network()
    made = interpretation.decisions(model, x)
    assert len(interpretation.chosen_samples(made, made.classes)) == len(made.classes.unique())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--data", "iris"], "got 'iris'; expected digits or mnist:DIR", id="no images"),
        pytest.param(["--data", "mnist:/no/such/folder"], "/no/such/folder: no such folder", id="missing folder"),
    ],
)
def test_command_refuses_before_it_writes(tmp_path, capsys, words, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as refused:
        interpretation.main([str(out), *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_training_is_repeated_by_its_seed():
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    digits = data.load("digits")
    setting = interpretation.Setting(hidden=20, epochs=1)
    one, other = (interpretation.trained(digits, setting, seed=3) for _ in range(2))
    assert torch.equal(one.W1, other.W1)
    mlps = [interpretation.trained_mlp(digits, setting, seed=3) for _ in range(2)]
    assert torch.equal(*(mlp.get_parameter("layers.1.weight") for mlp in mlps))
