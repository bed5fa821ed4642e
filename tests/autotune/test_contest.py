"""The search on a clock that only the kernels move: what wins, what never may, what a kill and a budget leave."""

import random

import pytest
import torch

from tropigrad.autotune import (
    DeviceLost,
    Limits,
    Needs,
    Prediction,
    Space,
    Store,
    Task,
    Tuned,
    WrongDefault,
    contest,
    fingerprint,
    timing,
    tuned,
)
from tropigrad.autotune.contest import CANDIDATES, ROUNDS
from tropigrad.autotune.keys import canonical

CPU = torch.device("cpu")
PROBLEM = {"M": 64}


class Bench:
    """A kernel that takes `seconds(config)` on a clock of its own, and answers `answer(config)`."""

    def __init__(self, tmp_path, space, seconds, default):
        self.now, self.calls, self.noise = 0.0, [], lambda: 1.0
        self.seconds, self.answer = seconds, lambda config: "right"
        source = tmp_path / "kernel.cpp"
        source.write_text("")
        self.kernel = Tuned("bench", Space(space), lambda problem: default, source)
        self.store, self.inspect, self.foreseen = Store(tmp_path / "store"), None, lambda config: True

    def run(self):
        config = self.kernel.config(PROBLEM, CPU)
        self.calls.append(canonical(config))
        self.now += self.seconds(config) * self.noise()
        return self.answer(config)

    def check(self, answer):
        assert answer == "right", f"it answers {answer}"

    def search(self, **options):
        task = Task(self.kernel, PROBLEM, CPU, self.run, self.check, inspect=self.inspect)
        return contest.search(task, store=self.store, **{"budget_s": 1e6, **options})

    @property
    def tried(self):
        return set(self.calls)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """64 configs; the time has one minimum, at BLOCK=32, STAGES=3, num_warps=8: half of the default's."""

    def seconds(config):
        distance = abs(config["BLOCK"].bit_length() - 6) + abs(config["STAGES"] - 3) + abs(config["num_warps"] - 8) / 4
        return 0.01 * (1 + distance / 4)

    space = {"BLOCK": (16, 32, 64, 128), "STAGES": (1, 2, 3, 4), "num_warps": (1, 2, 4, 8)}
    found = Bench(tmp_path, space, seconds, {"BLOCK": 64, "STAGES": 1, "num_warps": 4})
    for module in (contest, timing):
        monkeypatch.setattr(module, "perf_counter", lambda: found.now)
    return found


BEST = {"BLOCK": 32, "STAGES": 3, "num_warps": 8}


def test_the_quickest_wins_and_is_published(bench):
    found = bench.search()
    assert (found.config, found.how, found.stored) == (BEST, "tuned", True)
    assert found.gain
    assert found.gain.low == pytest.approx(2.0)
    assert found.noise
    assert found.noise.value == pytest.approx(1.0)
    entry = bench.store.get(fingerprint(CPU), bench.kernel.key(PROBLEM))
    assert entry
    assert entry.config == BEST
    assert entry.evidence["complete"]
    assert not bench.store.journal(fingerprint(CPU), bench.kernel.key(PROBLEM)).read()


def test_where_all_are_equal_the_default_stays(bench):
    bench.seconds = lambda config: 0.01
    bench.noise = lambda: random.uniform(1, 1.3)
    found = bench.search()
    assert found.config == bench.kernel.default(PROBLEM)


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_unseat_the_default_by_a_config_that_is_slower(bench, seed):
    generator = random.Random(seed)
    bench.seconds = lambda config: 0.01 if config == bench.kernel.default(PROBLEM) else 0.0103
    bench.noise = lambda: 1 + generator.expovariate(5)
    assert bench.search().config == bench.kernel.default(PROBLEM)


def test_a_wrong_result_never_wins_however_quick(bench):
    quickest = bench.seconds
    bench.seconds = lambda config: 1e-4 if config["BLOCK"] == 128 else quickest(config)
    bench.answer = lambda config: "wrong" if config["BLOCK"] == 128 else "right"
    found = bench.search()
    assert found.config == BEST
    rejected = [rival for rival in found.evidence["rivals"] if rival["rejected"]]
    assert {rival["config"]["BLOCK"] for rival in rejected} == {128}
    assert {rival["rejected"] for rival in rejected} == {"wrong result: it answers wrong"}


def test_a_wrong_default_is_an_error_before_anything_is_stored(bench):
    bench.answer = lambda config: "wrong"
    with pytest.raises(WrongDefault, match="it answers wrong"):
        bench.search()
    assert list(bench.store.entries()) == []


def test_a_config_that_cannot_be_launched_is_rejected_with_its_words(bench):
    def answer(config):
        if config["num_warps"] == 8:
            raise RuntimeError("out of resources\nand more")
        return "right"

    bench.answer = answer
    found = bench.search()
    assert found.config == {**BEST, "num_warps": 4}
    reasons = {rival["rejected"] for rival in found.evidence["rivals"] if rival["rejected"]}
    assert reasons == {"RuntimeError: out of resources"}


def test_a_config_that_spoils_the_device_ends_the_search_and_no_other_is_blamed(bench, monkeypatch):
    """Else every config after it would fail too, and be rejected for good. The next process goes on without it."""
    lost = []

    def answer(config):
        if lost or config == BEST:
            lost[:] = ["an illegal memory access"]
            raise RuntimeError("an illegal memory access")
        return "right"

    bench.answer = answer
    monkeypatch.setattr(contest, "why_lost", lambda device: "".join(lost))
    with pytest.raises(DeviceLost, match=r"'STAGES': 3.* an illegal memory access; that config is not tried again"):
        bench.search()
    journal = bench.store.journal(fingerprint(CPU), bench.kernel.key(PROBLEM)).read()
    assert [record["config"] for record in journal if record["rejected"]] == [BEST]
    lost.clear()
    calls = len(bench.calls)
    found = bench.search()
    assert canonical(BEST) not in bench.calls[calls:]
    assert found.how == "tuned"
    assert found.config != BEST


def test_what_the_device_forbids_is_never_launched(bench, monkeypatch):
    kernel = bench.kernel
    bench.kernel = Tuned(kernel.name, kernel.space, kernel.default, kernel.source, lambda _, c: Needs(c["BLOCK"] * 2))
    bounds = Limits(threads=128, warp=32, shared=0)
    for module in (contest, tuned):
        monkeypatch.setattr(module, "limits", lambda device: bounds)
    found = bench.search()
    assert found.config == {"BLOCK": 32, "STAGES": 3, "num_warps": 4}
    assert not any('"num_warps": 8' in config or '"BLOCK": 128' in config for config in bench.tried)


def test_a_spill_is_rejected_and_the_forecast_ranks(bench, monkeypatch):
    monkeypatch.setattr(contest, "CANDIDATES", 3)
    order = []

    def inspect(configs, deadline):
        order.extend(sorted(configs, key=lambda config: (config["BLOCK"], config["STAGES"])))
        return [
            "spills 8 bytes" if config["BLOCK"] == 64 else Prediction(config["BLOCK"] + config["STAGES"], "ALU pipe")
            for config in configs
        ]

    bench.inspect = inspect
    bench.seconds = lambda config: 0.01
    found = bench.search()
    timed = [rival["config"] for rival in found.evidence["rivals"] if rival["rung"] >= 0]
    assert all(config in timed for config in order[:3])
    assert not any('"BLOCK": 64' in config for config in bench.tried - {canonical(bench.kernel.default(PROBLEM))})
    assert "spills 8 bytes" in {rival["rejected"] for rival in found.evidence["rivals"]}


def test_only_what_was_foreseen_in_time_contests(bench):
    """The rest is counted, and the search is none that is complete: the same one goes on from there."""
    deadlines, kernel = [], bench.kernel

    def inspect(configs, deadline):
        deadlines.append(deadline)
        bench.now += 400.0  # compilers took as long
        in_time = bench.foreseen
        return [Prediction(1.0, "ALU pipe") if in_time(config) else None for config in configs]

    bench.inspect = inspect
    bench.foreseen = lambda config: config["BLOCK"] == 64
    first = bench.search(budget_s=1000.0)
    assert 0 < deadlines[0] <= 500.0  # time is left to contest in
    assert (first.config, first.how) == ({**BEST, "BLOCK": 64}, "cut off")
    assert first.evidence["unforeseen"] == 48
    assert not first.evidence["complete"]
    assert all('"BLOCK": 64' in config for config in bench.tried)  # not by the descent either

    bench.foreseen = lambda config: True
    again = bench.search(budget_s=1000.0)
    assert (again.config, again.how) == (BEST, "tuned")
    assert "unforeseen" not in again.evidence
    entry = bench.store.get(fingerprint(CPU), kernel.key(PROBLEM))
    assert entry
    assert entry.evidence["complete"]


def test_where_nothing_was_foreseen_the_default_stays(bench):
    bench.inspect = lambda configs, deadline: [None] * len(configs)
    finding = bench.search()
    assert (finding.config, finding.how, finding.stored) == (bench.kernel.default(PROBLEM), "cut off", False)
    assert bench.tried == {canonical(bench.kernel.default(PROBLEM))}


def test_the_descent_finds_what_was_no_candidate(bench, monkeypatch):
    """From any start: the time has one minimum, so each step of the descent is one towards it."""
    monkeypatch.setattr(contest, "CANDIDATES", 2)
    found = bench.search()
    assert found.config == BEST
    assert len(bench.tried) < len(list(bench.kernel.space))


def test_a_hopeless_config_is_called_and_not_timed(bench):
    bench.seconds = lambda config: 1.0 if config["STAGES"] == 4 else 0.01
    bench.search()
    assert all(bench.calls.count(config) == 2 for config in bench.tried if '"STAGES": 4' in config)


def test_without_time_the_default_stays_and_hides_no_shipped_config(bench):
    found = bench.search(budget_s=-1)
    assert (found.config, found.how, found.stored) == (bench.kernel.default(PROBLEM), "cut off", False)
    assert bench.calls == []
    assert list(bench.store.entries()) == []


def test_what_a_budget_cuts_off_goes_on_from_there(bench):
    found = bench.search(budget_s=2.0)
    assert found.how == "cut off"
    timed = {canonical(r["config"]) for r in found.evidence["rivals"] if r["rung"] >= 0}
    assert 0 < len(timed) < len(list(bench.kernel.space))
    bench.calls.clear()
    again = bench.search()
    assert (again.config, again.how) == (BEST, "tuned")
    # of what had been timed only what came further was timed again
    rungs = {canonical(r["config"]): r["rung"] for r in again.evidence["rivals"]}
    assert all(rungs[config] > 0 for config in timed & bench.tried - {canonical(bench.kernel.default(PROBLEM))})
    assert len(bench.tried) < len(list(bench.kernel.space))


@pytest.mark.parametrize("after", [1, 40, 300, 900])
def test_a_kill_costs_no_more_than_the_batch_it_hit(bench, after):
    default, answer = canonical(bench.kernel.default(PROBLEM)), bench.answer

    def killed(config):
        if len(bench.calls) > after:
            raise KeyboardInterrupt
        return answer(config)

    bench.answer = killed
    with pytest.raises(KeyboardInterrupt):
        bench.search()
    known = {canonical(r["config"]) for r in bench.store.journal(fingerprint(CPU), bench.kernel.key(PROBLEM)).read()}
    # of a batch, only what was under way is unknown
    assert len(bench.tried - known - {default}) <= contest.BATCH + 1
    bench.answer = answer
    bench.calls.clear()
    assert bench.search().config == BEST


def test_a_finished_search_is_not_made_again_unless_asked(bench):
    bench.search()
    bench.calls.clear()
    found = bench.search()
    assert (found.how, found.config, bench.calls) == ("reused", BEST, [])
    assert bench.search(again=True).how == "tuned"
    assert len(bench.tried) == len(list(bench.kernel.space))


def test_a_store_that_refuses_costs_the_storing_alone(bench, tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.warns(RuntimeWarning, match="was not stored"), pytest.warns(RuntimeWarning, match="ignoring the"):
        found = bench.search()
    assert (found.config, found.stored) == (BEST, False)


def test_a_damaged_entry_is_searched_for_again(bench):
    bench.search()
    path = bench.store.path(fingerprint(CPU), bench.kernel.key(PROBLEM))
    path.write_text(path.read_text()[:100])
    with pytest.warns(RuntimeWarning, match="it is damaged"):
        assert bench.search().how == "tuned"
    assert bench.search().how == "reused"


def test_records_that_are_none_are_dropped(bench):
    journal = bench.store.journal(fingerprint(CPU), bench.kernel.key(PROBLEM))
    journal.add({"config": 3}, {"ratio": 1}, {"config": {}, "ratio": "x", "rung": 0, "rejected": ""})
    assert bench.search().config == BEST


def test_progress_is_told(bench):
    told = []
    bench.search(progress=lambda *what: told.append(what))
    assert all(0 <= done <= total and what.startswith("bench: ") for done, total, what in told)
    assert {"64", "neighbours", "against"} & {word for _, _, what in told for word in what.split()}


def test_a_space_larger_than_the_candidates_is_sampled_the_same_each_time(bench, monkeypatch):
    assert len(list(bench.kernel.space)) <= CANDIDATES
    monkeypatch.setattr(contest, "CANDIDATES", 10)
    monkeypatch.setattr(contest, "_descend", lambda state, champion: champion)
    bench.search()
    first, bench.calls = bench.tried, []
    bench.search(again=True)
    assert bench.tried == first
    assert len(first) == 11


def test_rungs_time_longer_and_longer():
    assert list(ROUNDS) == sorted(set(ROUNDS))
    assert all(rounds >= 3 for rounds in ROUNDS)
