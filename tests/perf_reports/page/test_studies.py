"""What the page says of the studies: times to an equal level, fronts, and where nothing is gained."""

import pytest

from tropigrad.perf_reports.page import cost, curves, equals, figures, page, speedups, statements, systems
from tropigrad.perf_reports.page import fronts as drawn_fronts

from ..conftest import front, fronts, summary, training


def study(ours, dense, field="loss"):
    """Two methods by their (seconds, value), and their ends."""
    records = []
    for method, role, line in (("ours", "ours", ours), ("SGD", "dense", dense)):
        for place, (seconds, value) in enumerate(line):
            records.append({**training(method, place, seconds, None, None), field: value})
        records.append(summary(method, role, 0.1))
    return records


def equal_in(records, field="loss"):
    equal = equals.at(records, "maxplus", field)
    assert equal is not None
    return equal


@pytest.mark.parametrize(
    ("ours", "dense", "field", "level", "seconds"),
    [
        ([(0, 4.0), (1, 2.0), (2, 1.0)], [(0, 4.0), (5, 2.0), (9, 1.5)], "loss", 1.5, (2, 9)),
        ([(1, 0.3)], [(1, 2.0), (3, 0.25), (9, 0.1)], "loss", 0.3, (1, 3)),
        ([(1, 0.9), (2, 0.97), (3, 0.95)], [(4, 0.96), (5, 0.9)], "test_accuracy", 0.96, (2, 4)),
    ],
    ids=["ours ends lower", "a single point", "accuracy"],
)
def test_the_level_is_the_best_that_both_reach_and_counts_when_first_reached(ours, dense, field, level, seconds):
    equal = equal_in(study(ours, dense, field), field)
    assert (equal.level, (equal.our_seconds, equal.dense_seconds)) == (level, seconds)
    assert equal.ratio == seconds[1] / seconds[0]


def test_nothing_is_compared_before_the_end_nor_at_the_start():
    records = study([(0, 4.0), (1, 5.0)], [(0, 4.0), (1, 6.0)])
    assert equals.at(records, "maxplus", "loss") is None  # both are at their best at 0 s
    records = study([(0, 4.0), (1, 2.0)], [(0, 4.0), (5, 2.0)])
    assert equal_in(records).ratio == 5
    assert equals.at([r for r in records if r["kind"] == "training"], "maxplus", "loss") is None
    assert equals.at(records, "gsgd", "loss") is None


def test_a_sentence_says_who_goes_on_and_whether_time_is_gained():
    gain = equal_in(study([(1, 0.3)], [(4, 0.3), (9, 0.1)])).sentence
    assert gain == "To an equal loss of 0.3, ours takes 1.00 s and SGD 4.00 s: 4.00× the time. SGD goes on to 0.1."
    loss = study([(4, 0.3)], [(1, 0.3)])
    assert "0.250× the time, so none is gained." in equal_in(loss).sentence
    ((head, sentence),) = statements.no_gains(loss)
    assert head == "max-plus networks, digits"
    assert "so none is gained" in sentence
    assert statements.no_gains(study([(1, 0.3)], [(4, 0.3)])) == []


def test_where_no_level_is_shared_iterations_are_compared():
    ends = [summary("ours", "ours", 0.2), summary("SGD", "dense", 0.1)]
    ((_, sentence),) = statements.no_gains(ends)
    assert sentence.startswith("An iteration of SGD takes 0.500× our time")


def test_a_solution_is_not_compared_with_a_step_but_by_the_time_to_its_loss():
    records = [{**r, "study": "explicit"} for r in study([(0.01, 0.3)], [(0.03, 0.5), (0.05, 0.2)])]
    names = {"ours": "solution", "dense": "step"}
    records = [{**r, "iteration": names[r["role"]]} if r["kind"] == "training_summary" else r for r in records]
    assert speedups.groups(records) == []
    (own,) = systems.costs(records)
    assert (own.system.name, own.ours, own.dense, own.measured) == (
        "explicit", 0.01, 0.05, "training to an equal loss, digits"
    )  # fmt: skip
    assert "5.00× the time of tropigrad on softmax by counting" in cost.verdict([own])


def test_saved_bytes_are_told():
    ends = [{**summary("ours", "ours", 0.2), "saved_bytes": 155_000}, {**summary("eager", "dense", 0.2)}]
    assert statements.of(ends, "maxplus") == ["Kept for the backward of a mini-batch: ours 155 kB."]


# ------------------------------------------------------------------------------------------------ fronts


def test_a_front_is_drawn_of_the_points_that_none_dominates_but_the_network_of_zeros():
    lines = drawn_fronts.fronts_of(fronts(), "l1path")
    assert {method: [p["l1"] for p in line] for method, line in lines.items()} == {
        "held λ": [20, 80],
        "sweep": [30, 200],
    }


def test_titles_state_the_finding_and_words_the_ends():
    norms, counts = drawn_fronts.panels(fronts(), "l1path")
    assert norms.title == "Loss over the ℓ¹ norm: hypervolume of sweep 95.0 %, held λ 90.0 %"
    assert counts.title == "Loss over nonzeros: for a loss of 0.01, held λ 400, sweep 1,900"
    assert "held λ goes from loss 0.6 at ℓ¹ norm 20 to loss 0.01 at 80" in norms.words.replace("ℓ¹ norm 80", "80")
    assert len(figures.draw_panels([norms, counts], "training-l1path", None)) == 2


def test_before_the_study_ended_its_fronts_are_drawn_without_a_hypervolume():
    own = [r for r in fronts() if r["kind"] == "front"]
    norms, _ = drawn_fronts.panels(own, "l1path")
    assert norms.title == "Loss over the ℓ¹ norm: for a loss of 0.01, held λ 80, sweep 200"
    assert statements.of(own, "l1path") == [
        "Processor time of each front: held λ 2.00 s for 4 points, sweep 2.00 s for 4 points."
    ]


def test_nothing_is_drawn_of_fronts_of_zeros_alone():
    assert drawn_fronts.panels([front("held λ", "ours", [(2.3, 0.0, 0), (2.3, 0.0, 0)])], "l1path") == []
    assert drawn_fronts.panels([], "l1path") == []


def test_a_front_that_is_not_ahead_is_listed_under_no_gain():
    ((head, sentence),) = statements.no_gains(fronts())
    assert head == "sparse networks, digits"
    assert "held λ (0.900, in 2.00 s) is not ahead of sweep (0.950, in 2.00 s)" in sentence
    ours_first = [{**r, "hypervolume": 0.99} if r.get("role") == "ours" and "hypervolume" in r else r for r in fronts()]
    assert statements.no_gains(ours_first) == []


def test_the_page_shows_a_study_in_its_systems_section(run_records, tmp_path):
    head, *rest = run_records
    source = page.build([head, *fronts(), *rest], tmp_path, draft=True).read_text()
    section = source.split('id="training-l1path"')[1].split("<table>")[0]
    assert "sparse networks, digits" in section
    assert "Hypervolume over the norms that all fronts reach, 20 to 80" in section
    assert section.count("<figure>") == 2
    assert source.index('id="training-maxplus"') < source.index('id="training-l1path"')
    assert "To an equal test accuracy of 93.8 %" in source
    assert source.count("<td>l1path</td>") == 2


def test_names_at_the_ends_stay_inside_the_axes():
    lines = {name: [(0.1, 4.0, 4.0, 4.0), (1.0 + place, 0.0, 0.0, 0.0)] for place, name in enumerate("abcdef")}
    heights = []

    def draw(axes):
        curves._draw(lines, {name: place for place, name in enumerate(lines)}, "loss", axes)
        heights.extend((text.xy[1] if hasattr(text, "xy") else text.get_position()[1]) for text in axes.texts)
        heights.append(axes.get_ylim())

    figures.draw_panels([figures.Panel("p", "t", "w", draw)], "s", None)
    *names, (low, top) = heights
    assert len(names) == 6
    assert low < min(names) < max(names) < top
