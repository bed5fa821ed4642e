"""G-SGD beside SGD: networks and starts, the comparison, a run in a folder that can be taken up again, the command."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.data import Dataset
from tropigrad.perf_reports.studies import runs
from tropigrad.perf_reports.studies.gsgd import methods as gsgd
from tropigrad.perf_reports.studies.gsgd.methods import Recipe


def blobs(features=16, seed=0):
    """Three clouds, 30 + 15 samples of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, features, generator=generator)
    y = torch.arange(3).repeat(45)
    x = (centres[y] + 0.1 * torch.randn(135, features, generator=generator)).clamp(0, 1)
    return Dataset(x[:90], y[:90], x[90:], y[90:], "three blobs")


def rows(folder):
    found = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


# ------------------------------------------------------------------------------------------------ networks, training


def test_the_mlp_is_that_of_the_paper():
    dataset = blobs(784)
    sizes = [tuple(p.shape) for p in gsgd.network(Recipe(), dataset).parameters()]
    assert sizes == [(64, 784), (64, 64), (64, 64), (64, 64), (3, 64)]


@pytest.mark.parametrize("kind", gsgd.NETWORKS)
def test_starts_differ_in_the_skeleton_or_the_scale_alone(kind):
    dataset = blobs(3 * 8 * 8)
    recipe = Recipe(network=kind, seed=3)
    unit, torchs, rescaled = (
        gsgd.network(r, dataset) for r in (recipe, replace(recipe, unit=False), replace(recipe, spread=1.0))
    )
    same = [(p == q).double().mean() for p, q in zip(unit.parameters(), torchs.parameters(), strict=True)]
    assert all(0.3 < share < 1 for share in same)
    torch.testing.assert_close(rescaled(dataset.x_test), unit(dataset.x_test), rtol=1e-3, atol=1e-3)
    assert not torch.equal(next(rescaled.parameters()), next(unit.parameters()))


@pytest.mark.parametrize("optimizer", gsgd.OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    training = gsgd.Training(Recipe(optimizer=optimizer, lr=0.05, batch=16), blobs())
    found = [row for _ in range(120) if (row := training.advance())]
    assert [row["iteration"] for row in found] == list(range(1, 21))
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["test_accuracy"] > 0.95


def test_only_g_sgd_goes_the_same_way_from_a_rescaled_start():
    def losses(optimizer, spread):
        training = gsgd.Training(Recipe(optimizer=optimizer, spread=spread), blobs())
        return torch.tensor([row["loss"] for _ in range(16) if (row := training.advance())])

    torch.testing.assert_close(losses("gsgd", 1.0), losses("gsgd", 0.0), rtol=1e-3, atol=1e-4)
    assert (losses("sgd", 1.0) - losses("sgd", 0.0)).abs().max() > 0.05


def test_a_training_that_leaves_the_finite_numbers_has_no_loss():
    training = gsgd.Training(Recipe(optimizer="sgd", lr=1e38), blobs())
    found = [row for _ in range(8) if (row := training.advance())]
    assert found[-1]["loss"] is None
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------------------------------------ the comparison


def test_comparison_records(monkeypatch):
    setting = gsgd.Setting(epochs=2, seeds=2, tuning_epochs=3, train_per_class=5, rates=(1e-5, 0.02))
    monkeypatch.setattr(gsgd, "SETTINGS", {True: setting, False: setting})
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    seen = []
    records = list(gsgd.compare(None, True, 3, lambda *progress: seen.append(progress)))
    json.dumps(records, allow_nan=False)
    summaries = [r for r in records if r["kind"] == "training_summary"]
    assert records[-5:] == summaries
    assert [r["role"] for r in summaries] == ["ours", "dense", "other", "other", "other"]
    assert [r["lr"] for r in summaries if "Path" not in r["method"]] == [0.02] * 4  # 1e-5 learns nothing
    assert all(len(r["test_accuracies"]) == 2 for r in summaries)
    for r in summaries:
        curve = [row for row in records if row["kind"] == "training" and row["method"] == r["method"]]
        assert [row["iteration"] for row in curve] == [1, 2]
        assert all((row["study"], row["seed"]) == ("gsgd", 3) for row in curve)
    assert seen[-1][0] == seen[-1][1] == 2


def test_the_overhead_is_that_of_whole_steps():
    found = gsgd.overhead(rounds=3)
    assert found["ratio"] == found["gsgd"] / found["sgd"] > 0


def test_the_picture_of_rescaled_starts_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    gsgd.draw_starts(blobs(), tmp_path / "starts.png", spreads=(0.0, 0.5), epochs=1)
    assert (tmp_path / "starts.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------ a run in a folder


def test_a_run_leaves_its_files(tmp_path):
    out = tmp_path / "deep" / "run"
    summary = gsgd.train(blobs(), out, Recipe(), epochs=3)
    assert not summary["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == sorted(os.path.basename(path) for path in summary["files"])
    assert [row["iteration"] for row in rows(out)] == [1, 2, 3]
    saved = torch.load(out / runs.MODEL, weights_only=True)
    model = gsgd.network(Recipe(), blobs())
    model.load_state_dict(saved["state_dict"])
    right = (model(blobs().x_test).argmax(1) == blobs().y_test).double().mean().item()
    assert right == pytest.approx(summary["test_accuracy"])


@pytest.mark.parametrize("optimizer", gsgd.OPTIMIZERS)
def test_ctrl_c_in_an_epoch_and_a_resumption_change_no_bit(tmp_path, optimizer, monkeypatch):
    recipe = Recipe(optimizer=optimizer, batch=16, momentum=0.0 if optimizer == "path_sgd" else 0.9, lr=0.01)
    steps = []
    advance = gsgd.Training.advance

    def interrupted(training):
        steps.append(None)
        if len(steps) == 9:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return advance(training)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    gsgd.train(blobs(), whole, recipe, epochs=4)
    monkeypatch.setattr(gsgd.Training, "advance", interrupted)
    summary = gsgd.train(blobs(), parts, recipe, epochs=4)
    assert (summary["interrupted"], summary["epochs"], len(steps)) == (True, 1, 9)
    gsgd.train(blobs(), parts, recipe, epochs=4, resume=True)
    assert rows(parts) == rows(whole)
    ours, theirs = (torch.load(folder / runs.MODEL, weights_only=True)["state_dict"] for folder in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    def killed(done, total, what):
        if done == 2:
            raise MemoryError

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(MemoryError):
        gsgd.train(blobs(), tmp_path / "parts", Recipe(), epochs=4, progress=killed)
    gsgd.train(blobs(), tmp_path / "parts", Recipe(), epochs=4, resume=True)
    gsgd.train(blobs(), tmp_path / "whole", Recipe(), epochs=4)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_another_recipe_is_not_resumed(tmp_path):
    gsgd.train(blobs(), tmp_path, Recipe(), epochs=1)
    with pytest.raises(runs.ResumeError, match=r"another setting: lr 0\.1, asked for 0\.2"):
        gsgd.train(blobs(), tmp_path, Recipe(lr=0.2), epochs=2, resume=True)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        pytest.param(Recipe(network="rnn"), "network is 'rnn'; expected one of mlp, cnn", id="network"),
        pytest.param(Recipe(optimizer="adam"), "optimizer is 'adam'", id="optimizer"),
        pytest.param(Recipe(batch=0), "batch is 0", id="batch"),
        pytest.param(Recipe(lr=-1.0), "lr is -1", id="lr"),
        pytest.param(Recipe(spread=-1.0), "spread is -1", id="spread"),
        pytest.param(Recipe(optimizer="path_sgd", momentum=0.9), "neither momentum", id="path-sgd"),
        pytest.param(Recipe(network="cnn"), "three blobs has 17 features", id="no-image"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, recipe, match):
    with pytest.raises(ValueError, match=match):
        gsgd.train(blobs(17), tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the command, CIFAR-10


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "gsgd", *map(str, words)])


def test_command_trains_and_resumes(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    first = command("--data", "iris", "--out", tmp_path, "--epochs", 2, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["epochs"] == 2
    second = command("--data", "iris", "--out", tmp_path, "--epochs", 3, "--resume")
    assert second.exit_code == 0, second.output
    assert "epochs         3 in" in second.stdout


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_command_with_130_and_it_resumes(command, tmp_path, monkeypatch, times):
    """Once, after the mini-batch under way; twice, at once, from the last checkpoint written before."""
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    advance, steps = gsgd.Training.advance, []

    def interrupted(training):
        steps.append(None)
        for _ in range(times if len(steps) == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return advance(training)

    monkeypatch.setattr(gsgd.Training, "advance", interrupted)
    words = ("--data", "iris", "--out", tmp_path / "parts", "--epochs", 3)
    first = command(*words)
    assert first.exit_code == 130
    assert "--resume goes on" in (first.stdout if times == 1 else first.stderr)
    assert len(steps) == 3
    second = command(*words, "--resume")
    assert second.exit_code == 0, second.output
    command("--data", "iris", "--out", tmp_path / "whole", "--epochs", 3)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--data", "cifar10:/no/such/folder"), "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(("--data", "iris", "--network", "cnn"), "iris has 4 features", id="no image"),
        pytest.param(("--data", "iris", "--epochs", "0"), "epochs is 0", id="epochs"),
        pytest.param(("--data", "iris", "--resume"), "no checkpoint to resume", id="nothing to resume"),
    ],
)
def test_command_refuses_in_one_line(command, tmp_path, words, message):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    result = command(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def cifar(folder, count=4, label=3):
    records = torch.randint(0, 256, (count, 3073), dtype=torch.uint8)
    records[:, 0] = label
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (folder / name).write_bytes(records.numpy().tobytes())
    return records


def test_cifar10_is_read(tmp_path):
    records = cifar(tmp_path)
    found = data.load(f"cifar10:{tmp_path}")
    assert (found.name, found.x_train.shape, found.x_test.shape) == ("cifar10", (8, 3072), (4, 3072))
    assert torch.equal(found.x_test, records[:, 1:].float() / 255)
    assert found.y_train.tolist() == [3] * 8


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda path: path.unlink(), "no test_batch", id="missing"),
        pytest.param(lambda path: path.write_bytes(b"x" * 100), "100 bytes; expected records of 3073", id="short"),
        pytest.param(lambda path: path.write_bytes(b"\x0b" * 3073), "label 11; expected 0 to 9", id="label"),
        pytest.param(lambda path: path.rename(f"{path}.xz"), "cannot be read", id="not-xz"),
    ],
)
def test_corrupt_cifar10_is_named(tmp_path, spoil, match):
    cifar(tmp_path)
    spoil(tmp_path / "test_batch.bin")
    with pytest.raises(data.DataError, match=match):
        data.load("cifar10", tmp_path)


def test_real_cifar10_is_read():
    folder = data.find_data_dir()
    if folder is None or not (folder / "cifar10").is_dir():
        pytest.skip("TROPIGRAD_DATA names no folder with CIFAR-10")
    found = data.load("cifar10", folder)
    assert found.classes == 10
    assert gsgd.image_shape(found) == (3, 32)
    assert 0.4 < found.x_train.mean() < 0.55
