"""The page: self-contained, whole, honest about what is red, slower, left out or interrupted."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from tropigrad.perf_reports import records
from tropigrad.perf_reports.page import numbers, page, rows

SHEETS = ("cost", "growth", "roofline", "speedups")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Collects ids, links and text; fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], Counter(), [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def built(records, out):
    index = page.build(records, out)
    source = index.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    assert checker.open == []
    text = re.sub(r"\s+", " ", " ".join(checker.text))
    return source, checker, text


def test_the_page_is_whole_and_needs_no_other_file(run_records, tmp_path):
    source, checker, _ = built(run_records, tmp_path)
    outside = [link for link in checker.links if not link.startswith("#")]
    assert sorted(outside) == ["data:,", "results.csv", "results.jsonl"]  # to download; nothing is loaded
    assert {link[1:] for link in checker.links if link.startswith("#")} <= {*checker.ids}
    assert len(source) < 3e6
    assert not re.search(r"url\((?!#)|@import|<script src|<link (?!rel=\"icon\" href=\"data:,)", source)
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    assert [id for id, count in checker.ids.items() if count > 1] == []
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "results.jsonl", "results.csv"),
        *(f"{name}.{kind}" for name in (*SHEETS, "training-maxplus") for kind in ("png", "svg")),
    }


def test_every_figure_has_words_and_every_column_a_head(run_records, tmp_path):
    source, _, _ = built(run_records, tmp_path)
    words = re.findall(r'role="img" aria-label="([^"]*)"', source)
    assert len(words) == 1 + 2 + 1 + 1 + 2  # cost; loss and accuracy; speedups; roofline; growth of time and memory
    assert len(set(words)) == len(words)
    for table in re.findall(r"<table>.*?</table>", source, re.DOTALL):
        columns = table.count('<th scope="col"')
        rows = re.findall(r"<tr.*?</tr>", table.split("<tbody>")[1], re.DOTALL)
        assert rows
        assert {len(re.findall(r"<td", row)) for row in rows} == {columns}


def test_what_is_slower_is_listed(run_records, tmp_path, words_alone):
    _, _, text = built(run_records, tmp_path)
    after = text.split("Where we gain nothing, or cannot tell")[1].split("Every timing")[0]
    assert "product forward S1 8×8×8 a peer 0.800× 0.72 – 0.88 the other kernel is faster at this size" in after
    assert "dense eager" not in after


def test_a_red_gate_stands_at_the_top(run_records, tmp_path, words_alone):
    gate = {**run_records[-9], "kind": "gate", "gate": "red", "op": "product", "detail": "largest difference 3"}
    gate |= {"workload": "forward", "shape_label": "S1 8×8×8", "contender": "a peer"}
    _, _, text = built([*run_records, gate], tmp_path)
    assert "1 result did not agree" in text
    assert "largest difference 3" in text


@pytest.mark.parametrize("cut", [1, 2, 9, 46, -1], ids=lambda cut: f"{cut} records")
def test_an_interrupted_run_shows_what_there_is(run_records, tmp_path, words_alone, cut):
    _, _, text = built(run_records[:cut], tmp_path)
    assert "Interrupted." in text


def test_a_finished_run_is_not_called_interrupted(run_records, tmp_path, words_alone):
    _, _, text = built(run_records, tmp_path)
    assert "Interrupted." not in text
    assert "measured in 12.3 s" in text


def test_names_are_escaped(run_records, tmp_path, words_alone):
    for record in run_records:
        if record.get("contender") == "a peer" and record["kind"] == "timing":
            record["contender"] = "<script>alert(1)</script>"
    source, _, text = built(run_records, tmp_path)
    assert "<script>alert" not in source
    assert "<script>alert(1)</script>" in text


def test_the_page_is_drawn_from_the_file_alone_and_is_the_same_each_time(run_records, tmp_path):
    with records.Results(tmp_path / "results.jsonl") as kept:
        for record in run_records:
            kept.add({key: value for key, value in record.items() if key not in ("run", "time", "schema_version")})
    first = page.build(records.read(tmp_path / "results.jsonl"), tmp_path).read_bytes()
    assert page.build(records.read(tmp_path / "results.jsonl"), tmp_path).read_bytes() == first


def test_the_last_run_is_shown(run_records, tmp_path, words_alone):
    older = [record | {"run": "older"} for record in run_records]
    _, _, text = built([*older, run_records[0], run_records[-1]], tmp_path)
    assert "abc, in results.jsonl" in text
    assert "a peer" not in text


def test_a_run_cut_off_anywhere_can_be_drawn(run_records, tmp_path):
    source, _, _ = built(run_records[:20], tmp_path)
    assert 'aria-label="Training loss' in source
    assert 'id="roof"' not in source


def test_no_run_no_page(tmp_path):
    with pytest.raises(ValueError, match="hold no run"):
        page.build([], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0, "0 B"), (4_194_304, "4.19 MB"), (2e9, "2.00 GB"), (512_000, "512 kB")],
    ids=str,
)
def test_bytes_in_words(value, words):
    assert numbers.byte_count(value) == words


def test_a_draft_says_what_is_missing_and_leaves_no_other_file(run_records, tmp_path, words_alone):
    head = {**run_records[0], "planned": ["ceilings", "training, gsgd", "other, forward, S1 8", "other, forward, S2 9"]}
    index = page.build([head, *run_records[1:-1]], tmp_path, draft=True)
    assert "Missing yet: training, gsgd, other (2)." in index.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert not page.is_finished(tmp_path)


def test_a_finished_page_is_known_as_such(run_records, tmp_path, words_alone):
    assert not page.is_finished(tmp_path)
    page.build(run_records, tmp_path)
    assert page.is_finished(tmp_path)
    page.build(run_records[:-1], tmp_path)
    assert not page.is_finished(tmp_path)


def test_four_tiles_with_the_best_rival_and_the_losses(run_records, tmp_path, words_alone):
    source, _, text = built(run_records, tmp_path)
    assert source.count('<li class="gain"><b>') + source.count('<li class="loss"><b>') == 4
    assert "0.800× against the best rival" in text
    assert re.search(r"4 of \d+ comparisons without a clear gain", text)


def test_where_no_rival_took_part_the_tile_says_so(run_records, tmp_path, words_alone):
    _, _, text = built([r for r in run_records if r.get("role") != "peer"], tmp_path)
    assert "not measured against the best rival" in text


def test_the_page_opens_with_a_verdict(run_records, tmp_path, words_alone):
    _, _, text = built(run_records, tmp_path)
    assert "Dense backprop takes 100× the time of tropigrad on max-plus networks." in text


def test_what_the_file_lacks_is_said(run_records, tmp_path, words_alone):
    index = page.build(run_records, tmp_path, complaints=["line 7 is cut off, or no JSON"])
    assert "line 7 is cut off" in index.read_text()


def test_a_run_without_its_head_can_be_drawn(run_records, tmp_path, words_alone):
    _, _, text = built([{"kind": "run", "run": "abc", "time": ""}, *run_records[1:]], tmp_path)
    assert "a machine that is not named" in text


def test_the_csv_has_a_line_for_each_timing(run_records):
    header, *lines = rows.as_csv(run_records).splitlines()
    assert header.startswith("op,workload,shape,contender,role")
    assert len(lines) == 16
    assert "product,forward,S1 8×8×8,a peer,peer,,0.016," in lines[2]


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "tropigrad report"),
        ({"quick": True, "only": ["conv2d forward", "gsgd"], "seed": 3, "budget_s": 90.0},
         "tropigrad report --quick --only 'conv2d forward' --only gsgd --seed 3 --budget 90s"),
    ],
    ids=["default", "all"],
)  # fmt: skip
def test_the_command_that_made_a_run(settings, command):
    assert rows.command({"settings": settings}) == command
