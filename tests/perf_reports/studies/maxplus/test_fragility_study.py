"""The study of fragility: its records agree with the network, its picture is written, bad input is named."""

import json

import pytest

from tropigrad.perf_reports.studies.maxplus import fragility as study

pytest.importorskip("sklearn")


def test_digits(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(study.SETTINGS, ("digits", False), study.Settings(20, 1, 0.003, 300, 16))
    study.main([str(tmp_path), "--data", "digits"])
    run, network, *samples = map(json.loads, (tmp_path / "fragility.jsonl").read_text().splitlines())
    assert (run["kind"], network["kind"]) == ("run", "network")
    assert network["samples"] == 540
    shares = [*network["turned_within"].values()]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    assert network["mlp_accuracy"] >= network["accuracy"] > 0.5
    assert samples
    for sample in samples:
        assert sample["kind"] == "sample"
        assert sample.get("becomes") != sample["label"]
    assert (tmp_path / "fragility.png").stat().st_size > 10_000
    assert "one pixel turns" in capsys.readouterr().out


def test_other_data_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main([str(tmp_path), "--data", "iris"])
    assert "--data is 'iris'; expected digits or mnist:DIR" in capsys.readouterr().err
