"""The roof's formula, which measured figures make it up, and that it is drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropigrad.perf_reports.page import curves, figures, roofline, speedups
from tropigrad.perf_reports.page.roofline import attainable, bandwidth_roof, compute_roof, points

POSITIVE = st.floats(1e-3, 1e6)


@given(POSITIVE, POSITIVE, POSITIVE)
def test_the_roof_is_under_both_ceilings_and_touches_one(intensity, compute, bandwidth):
    roof = attainable(intensity, compute, bandwidth)
    assert roof <= compute
    assert roof <= intensity * bandwidth
    assert roof in (compute, intensity * bandwidth)


@given(POSITIVE, POSITIVE, POSITIVE, st.floats(1, 100))
def test_the_roof_never_falls_with_intensity(intensity, compute, bandwidth, factor):
    assert attainable(factor * intensity, compute, bandwidth) >= attainable(intensity, compute, bandwidth)


def test_a_mix_is_bounded_by_its_best_way(run_records):
    for record in run_records:
        if record.get("name") == "fma_max" and record["threads"] == 2:
            record["value"] = 130.0
    assert compute_roof(run_records, "add_max") == 130.0
    assert compute_roof(run_records, "mul_max") is None
    assert bandwidth_roof(run_records) == 20.0
    assert bandwidth_roof(run_records, "cache") is None


def test_points_are_ours_with_steps_a_byte(run_records):
    found = points(run_records)
    assert {(p.workload, p.shape) for p in found} == {
        (workload, shape) for workload in ("forward", "forward + backward") for shape in ("S1 8×8×8", "S2 8×8×8")
    }
    assert {p.intensity for p in found} == {10.0, 100.0}
    assert {p.rate for p in found} == {50.0}


def draw_training(records, out):
    return curves.draw(records, "maxplus", out, "Worst-sample loss")


@pytest.mark.parametrize(
    ("draw", "name"),
    [(roofline.draw, "roofline"), (speedups.draw, "speedups"), (draw_training, "training-maxplus")],
    ids=["roofline", "speedups", "training"],
)
def test_a_figure_is_written_as_png_and_svg_and_follows_the_theme_inside_a_page(run_records, tmp_path, draw, name):
    drawing = draw(run_records, tmp_path)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    assert "var(--" not in (tmp_path / f"{name}.svg").read_text()
    assert drawing.startswith("<svg")
    assert "var(--ink)" in drawing
    assert not any(color in drawing for color in (*figures.COLOR.values(), "#000000"))


@pytest.mark.parametrize(
    "draw", [roofline.draw, speedups.draw, draw_training], ids=["roofline", "speedups", "training"]
)
def test_nothing_to_draw_draws_nothing(run_records, tmp_path, draw):
    assert draw(run_records[:1], tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_bandwidth_there_is_no_roofline(run_records, tmp_path):
    assert roofline.draw([r for r in run_records if r.get("name") != "memory"], tmp_path) is None


def test_geometric_mean():
    assert speedups.geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert speedups.geometric_mean([3.0, 1 / 3]) == pytest.approx(1)


def test_speedups_are_geometric_means_over_shapes_and_training_counts_dense_alone(run_records):
    found = {(g.workload, g.contender): g for g in speedups.groups(run_records)}
    assert found["forward", "dense eager"].mean == pytest.approx(40)
    assert found["forward", "a peer"].mean == pytest.approx(0.8)
    assert found["training iteration", "dense autograd"].mean == pytest.approx(100)
    assert ("forward", "torch.matmul") not in found


@pytest.mark.parametrize(
    ("value", "words"), [(1.5, "1.50×"), (40.71, "40.7×"), (400.4, "400×"), (12345.6, "12,346×")], ids=str
)
def test_speedups_in_words(value, words):
    assert speedups.times(value) == words
