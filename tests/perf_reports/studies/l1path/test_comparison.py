"""The command: what it writes, what it leaves alone when run again, its tables, and what it refuses."""

import json
import math

import pytest

from tropigrad.perf_reports.studies.l1path import comparison, drawing
from tropigrad.perf_reports.studies.l1path.rivals import Absent


def front(method, pairs, seed=0, dataset="digits"):
    points = [
        {"loss": loss, "l1": l1, "nnz": int(10 * l1), "val_loss": loss, "test_accuracy": 0.9, "features": 4}
        for loss, l1 in pairs
    ]
    return {
        "kind": "front", "dataset": dataset, "method": method, "seed": seed, "classes": 10, "points": points,
        "non_dominated": list(range(len(points))), "chosen": 0, "epochs": 20, "seconds": 0.5,
        "setting": {"rows": 100, "norms": [2.0, 4.0], "losses": [1.0, 0.2]},
    }  # fmt: skip


def test_the_common_range_is_what_all_walks_reach_and_its_hypervolume_is_of_it():
    rows = [front("held", [(2.0, 1.0), (1.0, 3.0)]), front("sweep", [(1.5, 2.0), (0.5, 5.0)])]
    rows.append(front("NSGA-II", [(2.0, 40.0)]))  # no walk: the range is not narrowed to it
    assert comparison.common_range(rows) == (2.0, 3.0)
    worst = math.log(10)
    (held, whole), (sweep, _), (evolved, _) = comparison.shares(rows, 4.0).values()
    assert held == pytest.approx((worst - 2.0) / worst)
    assert sweep == pytest.approx((worst - 1.5) / worst)
    assert evolved == 0
    assert whole == pytest.approx(((worst - 2.0) * 3 + 1.0) / (worst * 4))


def test_the_table_has_means_and_says_what_is_not_reached():
    rows = [front("held", [(2.0, 1.0), (1.0, 3.0)], seed) for seed in (0, 1)]
    rows += [front("sweep", [(0.5, 2.0 + 3 * seed)], seed) for seed in (0, 1)]
    rows.append({"kind": "absent", "dataset": "digits", "method": "NSGA-II", "seed": 0, "reason": "pymoo is absent"})
    lines = comparison.table(rows).splitlines()
    held, sweep, evolved = (next(x for x in lines if x.startswith(f"| {m} |")) for m in ("held", "sweep", "NSGA-II"))
    assert "| 2.000 / 1.000 | 30 / – |" in held
    assert "| 0.500 (1 of 2) / 0.500 (1 of 2) | 35 / – |" in sweep
    assert "pymoo is absent" in evolved
    assert any("3.46" in line for line in lines)


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    assert drawing.draw([front("held", [(2.0, 1.0), (1.0, 3.0)])], tmp_path / "fronts.png")
    assert (tmp_path / "fronts.png").read_bytes().startswith(b"\x89PNG")
    assert not drawing.draw([], tmp_path / "none.png")


def test_the_command_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    monkeypatch.setattr(comparison, "METHODS", ("held", "released", "pruning", "NSGA-II"))

    def absent(*arguments, **settings):
        raise Absent("pymoo is not installed")

    monkeypatch.setattr(comparison, "nsga2", absent)
    words = [str(tmp_path), "--quick", "--seeds", "1", "--only", "digits"]
    assert comparison.main(words) == 0
    path = tmp_path / "digits.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["kind"] for r in rows] == ["run", "front", "front", "front", "absent"]
    assert rows[0]["clock"] == "processor time, one thread"
    assert all(len(r["points"]) == 4 for r in rows[1:4])
    assert "pymoo is not installed" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "fronts.png").is_file()

    path.write_text("".join(json.dumps(r) + "\n" for r in rows[:3]))  # stopped after two fronts
    monkeypatch.setattr(comparison, "_walked", lambda method, *rest: pruned(method, *rest))
    walked, pruned_only = comparison.magnitude_pruning, []

    def pruned(method, model, task, *rest):
        pruned_only.append(method)
        if method == "NSGA-II":
            raise Absent("pymoo is not installed")
        return walked(model, task, points=4, first_steps=3, correctors=2, h=0.1)

    assert comparison.main(words) == 0
    assert pruned_only == ["pruning", "NSGA-II"]
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert again[:3] == rows[:3]

    with pytest.raises(SystemExit):
        comparison.main([str(tmp_path), "--seeds", "1", "--only", "digits"])
    assert "another setting; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--only", "letters"], "invalid choice: 'letters'", id="unknown data"),
        pytest.param(["--only", "mnist", "--data-dir", "/no/such/folder"], "/no/such/folder", id="missing folder"),
        pytest.param(["--seeds", "0"], "--seeds of at least 1", id="no seed"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        comparison.main([str(tmp_path / "out"), "--quick", *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))
