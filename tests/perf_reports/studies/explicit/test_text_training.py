"""`train explicit` on a text: its files, Ctrl-C between models, resumption to the bit; and the command."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tropigrad.cli import app
from tropigrad.nn import ExplicitLanguageModel
from tropigrad.perf_reports.studies import runs
from tropigrad.perf_reports.studies.explicit import text_training


def rows(folder):
    logged = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in logged]


def test_a_run_leaves_its_model_and_rivals(tmp_path, text):
    summary = text_training.train(text, tmp_path, radius=2, sample=20)
    logged = rows(tmp_path)
    assert [row["model"] for row in logged] == [
        "ours: suffix, K = 2, weights",
        "the paper's form, K = 1",
        "the paper's form, K = 2",
        "Kneser–Ney, 3-gram",
    ]
    losses = [row["test_loss"] for row in logged]
    assert losses[0] < losses[2]  # of one radius, weights that were fitted beat the paper's
    assert losses[0] == pytest.approx(losses[3], abs=0.05)
    saved = torch.load(tmp_path / runs.MODEL, weights_only=True)
    model = ExplicitLanguageModel.from_state_dict(saved["model"])
    assert model.cross_entropy(text.test) == losses[0]
    assert text.spelled(model.sample(20, temperature=0.8)) == summary["sample"]
    assert saved["words"] == text.words


def test_all_models_are_asked_for_the_same_tokens(tmp_path, text, monkeypatch):
    asked = []
    for owner in (ExplicitLanguageModel, text_training.KneserNey):
        loss = owner.cross_entropy

        def told(model, tokens, loss=loss):
            context = model.radius if isinstance(model, ExplicitLanguageModel) else model.order - 1
            asked.append(tokens[context:].tolist())
            return loss(model, tokens)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(owner, "cross_entropy", told)
    text_training.train(text, tmp_path, radius=3, positions=50)
    assert asked == [text.test[3:53].tolist()] * 4


def test_ctrl_c_and_a_resumption_change_no_bit(tmp_path, text):
    def interrupted(done, total, what):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    text_training.train(text, whole, radius=2)
    assert text_training.train(text, parts, radius=2, progress=interrupted)["interrupted"]
    assert len(rows(parts)) == 2
    text_training.train(text, parts, radius=2, resume=True)
    assert rows(parts) == rows(whole)
    with pytest.raises(runs.ResumeError, match="another setting: radius 2, asked for 1"):
        text_training.train(text, parts, radius=1, resume=True)


def test_long_keys_leave_kneser_ney_out(tmp_path, text):
    summary = text_training.train(text, tmp_path, radius=22, mode="cat", positions=20)
    assert math.log2(7) * 23 > 63
    assert not any("Kneser" in row["model"] for row in summary["rows"])


def test_the_command_samples_a_text(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "input.txt"
    path.write_text(" ".join(rng.choice(["to", "be", "or", "not"], 600)), encoding="utf-8")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["train", "explicit", "--data", f"text:{path}", "--radius", "2", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "perplexity     ours: suffix, K = 2, weights" in done.stdout
    assert "sample         " in done.stdout
    again = CliRunner().invoke(
        app, ["train", "explicit", "--data", f"text:{path}", "--radius", "2", "--out", str(out), "--resume", "--json"]
    )
    summary = json.loads(again.stdout)
    assert set(summary["sample"]) <= set("tobern ")
