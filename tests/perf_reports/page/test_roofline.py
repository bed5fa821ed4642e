"""The roof's formula, which measured figures make it up, and that it is drawn."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropigrad.perf_reports.page import cost, curves, figures, growth, numbers, roofline, speedups, systems
from tropigrad.perf_reports.page.roofline import attainable, bandwidth_roof, compute_roof, points

from ..conftest import ceiling

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


def training_panels(records):
    return curves.panels(records, "maxplus", "Worst-sample loss")


def cost_panels(records):
    panel = cost.panel(systems.costs(records))
    return [panel] if panel else []


PANELS = {
    "cost": cost_panels,
    "roofline": roofline.panels,
    "speedups": speedups.panels,
    "growth": growth.panels,
    "training": training_panels,
}


@pytest.mark.parametrize("name", PANELS)
def test_a_sheet_is_written_as_png_and_svg_and_panels_follow_the_theme_of_the_page(run_records, tmp_path, name):
    drawn = figures.draw_panels(PANELS[name](run_records), name, tmp_path)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    assert "var(--" not in (tmp_path / f"{name}.svg").read_text()
    assert drawn
    for panel in drawn:
        assert panel.svg.startswith("<svg")
        assert "var(--ink)" in panel.svg
        assert "<text" in panel.svg  # and not outlines
        assert not any(color in panel.svg for color in (*figures.COLOR.values(), "#000000"))
        assert panel.words
        assert panel.title


@pytest.mark.parametrize("name", PANELS)
def test_nothing_to_draw_draws_nothing(run_records, tmp_path, name):
    assert figures.draw_panels(PANELS[name](run_records[:1]), name, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_bandwidth_there_is_no_roofline(run_records):
    assert roofline.panels([r for r in run_records if r.get("name") != "memory"]) == []


def test_titles_state_the_finding(run_records):
    titles = {name: [panel.title for panel in panels(run_records)] for name, panels in PANELS.items()}
    assert titles["speedups"] == ["product: 40.0× over dense PyTorch; slower than a peer (0.800×)"]
    assert titles["roofline"] == ["product: up to 50.0 % of add + max"]
    assert titles["training"] == [
        "Worst-sample loss: sparse backward is first to its 0.2 after 19.0 ms",
        "Test accuracy: sparse backward is first to its 93.8 % after 19.0 ms",
    ]
    assert titles["growth"][0] == "product, time with N, the outputs: ours N^1.00, dense N^2.00"


def test_a_roof_is_the_cache_s_where_the_memory_could_not_feed_the_work(run_records):
    cache = {**ceiling("cache", 2, 80.0, "GB/s"), "run": "abc"}
    roof = roofline.applying_roof
    assert roof(run_records, "add_max", 1.0, 10.0) == roofline.Roof("the memory", 20.0)
    assert roof([*run_records, cache], "add_max", 1.0, 10.0) == roofline.Roof("the memory", 20.0)
    assert roof([*run_records, cache], "add_max", 1.0, 30.0) == roofline.Roof("the L2 cache", 80.0)
    assert roof(run_records, "add_max", 100.0, 30.0) == roofline.Roof("add + max", 100.0)
    assert roof(run_records[:1], "add_max", 1.0, 1.0) is None


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0.01, 10))
def test_labels_keep_their_order_and_distance(wanted, least):
    places = figures.spread(wanted, least)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    moved = [places[i] for i in order]
    assert all(b - a >= least * (1 - 1e-6) for a, b in pairwise(moved))
    if all(b - a >= least for a, b in pairwise([wanted[i] for i in order])):
        assert places == pytest.approx(wanted, abs=1e-9)


@given(POSITIVE, st.floats(-3, 3), st.lists(st.floats(1, 1e4), min_size=2, max_size=6, unique_by=round))
def test_the_exponent_of_a_power_is_found(scale, power, sizes):
    assert growth.exponent(sizes, [scale * x**power for x in sizes]) == pytest.approx(power, abs=1e-3)


def test_several_seeds_become_a_median_and_a_band(run_records):
    rows = [
        {**r, "seed": seed, "loss": r["loss"] + seed}
        for r in run_records
        if r.get("method") == "sparse backward" and r["kind"] == "training"
        for seed in range(3)
    ]
    (_, median, least, most), *rest = curves._line(rows, "loss")
    assert (median, least, most) == (5.0, 4.0, 6.0)
    assert len(rest) == 19


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ratio": {"value": 0.99, "low": 0.9, "high": 1.1}}, "a tie"),
        ({"role": "compiled"}, "torch.compile fuses"),
        ({"role": "dense"}, "a few passes"),
        ({}, "the other kernel is faster"),
    ],
    ids=["tie", "compiled", "dense", "peer"],
)
def test_a_loss_has_its_likely_reason(run_records, change, reason):
    run = [{**r, **change} if r["kind"] == "timing" and r["role"] == "peer" else r for r in run_records]
    found = speedups.losses(run)
    assert len(found) == 4
    assert all(reason in loss.reason for loss in found)


def test_a_loss_in_a_short_call_or_near_the_roof_says_so(run_records):
    short = [
        {**r, "median": {"value": 2e-5, "low": 1e-5, "high": 3e-5}} if r.get("role") == "ours" and "median" in r else r
        for r in run_records
    ]
    assert "so short a call" in speedups.losses(short)[0].reason
    near = [{**r, "rate": 90.0} if r.get("role") == "ours" and "rate" in r else r for r in run_records]
    assert any("90.0 % of the roof of add + max" in loss.reason for loss in speedups.losses(near))


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
    assert numbers.times(value) == words
