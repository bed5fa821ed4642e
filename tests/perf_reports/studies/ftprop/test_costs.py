"""The contenders of each table compute one thing; peaks, and the search for the largest batch."""

import json
import sys
from types import ModuleType

import pytest
import torch

from tropigrad.kernels import hard_threshold
from tropigrad.nn import HardThreshold
from tropigrad.perf_reports.studies.ftprop import costs, eager
from tropigrad.perf_reports.studies.ftprop.costs import BATCH, LIMIT


def gradient(function, z, dy):
    z = z.detach().requires_grad_()
    y = function(z)
    return y.detach(), torch.autograd.grad(y, z, dy)[0]


def test_the_eager_port_computes_a_sign_with_the_soft_hinge():
    z, dy = torch.randn(2, 6, 50).unbind()
    z[0, :2] = torch.tensor([0.0, -0.0])
    dy[1, :2] = 0.0
    (y, dz), (ours, ours_dz) = (gradient(f, z, dy) for f in (eager.eager_sign, hard_threshold))
    torch.testing.assert_close(y, ours, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dz, ours_dz, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_port_takes_no_other_threshold():
    inner = torch.nn.Sequential(HardThreshold())
    model = torch.nn.Sequential(inner, HardThreshold(rule="sste"))
    with pytest.raises(ValueError, match=r"1 is HardThreshold\(kind='sign', rule='sste'\); expected a sign with soft"):
        eager.eager_port(model)
    assert isinstance(inner[0], eager.EagerSign)


@pytest.mark.parametrize("network", costs.NETWORKS)
def test_contenders_take_the_same_step(network):
    losses, gradients = [], []
    for name in (costs.PACKED, costs.PLAIN, costs.EAGER):
        step = costs.Step(network, name, batch=3)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of dropout
            loss = step.loss()
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in step.model.parameters()])
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(gradients[0], gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_packed_networks_save_a_quarter_of_what_the_port_saves():
    ours, theirs = (
        costs.saved_bytes(step.model, step.loss)
        for step in (costs.Step("convnet8", name, batch=2) for name in (costs.PACKED, costs.EAGER))
    )
    assert 3 * ours < theirs


def test_brevitas_is_left_out_where_it_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "brevitas", None)
    _, missing = costs.activations(1 << 10)
    assert missing == ["Brevitas, ste"]
    monkeypatch.setitem(sys.modules, "brevitas", ModuleType("brevitas"))
    monkeypatch.setitem(sys.modules, "brevitas.function", ModuleType("function"))
    fake = ModuleType("ops_ste")
    monkeypatch.setattr(fake, "binary_sign_ste", torch.sign, raising=False)
    monkeypatch.setitem(sys.modules, "brevitas.function.ops_ste", fake)
    calls, missing = costs.activations(1 << 10)
    assert missing == []
    assert "Brevitas, ste" in calls


def test_a_peak_is_that_of_a_fresh_process():
    record = costs.fresh_peak("convnet4", costs.PACKED, 4)
    if record["bytes"] is None:
        pytest.skip(record["how"])
    weights = 4_259_274 * 4
    assert 4 * weights < record["bytes"] < 12 * weights  # with their gradient and two moments of Adam
    with pytest.raises(RuntimeError, match="KeyError: 'rnn'"):
        costs.fresh_peak("rnn", costs.PACKED, 4)


@pytest.mark.parametrize(("fixed", "each"), [(50e6, 1e6), (10e6, 0.21e6), (0.4e9, 7e6), (0.9e9, 9e6)])
def test_the_largest_batch_is_found_within_three_per_cent(fixed, each):
    def peak(batch):
        return {"kind": "peak", "network": "n", "contender": "c", "batch": batch, "bytes": fixed + each * batch * 1.0}

    *peaks, last = costs.largest_batch(peak, 4 * BATCH)
    true = int((LIMIT - fixed) / each)
    if true < BATCH:
        assert (last["batch"], last["too_large"]) == (None, BATCH)
        return
    assert last["batch"] <= true < last["too_large"]
    assert last["batch"] >= 0.97 * true - 1
    assert len(peaks) <= 8


def test_the_command_writes_each_table(tmp_path, monkeypatch, capsys):
    record = {"kind": "peak", "network": "convnet8", "contender": "ours, packed", "batch": BATCH, "bytes": 1e6}
    monkeypatch.setattr(costs, "fresh_peak", lambda network, name, batch: {**record, "contender": name})
    for name in ("activation", "memory"):
        assert costs.main([str(tmp_path), "--quick", "--only", name]) == 0
        head, *records = (json.loads(text) for text in (tmp_path / f"costs-{name}.jsonl").read_text().splitlines())
        assert head["kind"] == "run"
        assert all(r["table"] == name for r in records)
    out = capsys.readouterr().out
    assert "× as fast as eager port, soft_hinge" in out
    assert "convnet8 64 ours, packed: 1 MB, at the peak" in out
    text = (tmp_path / "costs.md").read_text()
    assert text in out
    assert "| ours, packed | – | – | 1.0 MB |" in text
    assert "| contender | 64 Ki elements |" in text


def test_tables_have_what_was_measured_and_say_what_was_not():
    facts = {"table": "activation", "elements": 1 << 20}
    records = [
        {"kind": "time", **facts, "contender": "ours, ste", "median": 0.5e-3, "times_faster": 64.2},
        {"kind": "left_out", **facts, "contender": "Brevitas, ste", "why": "brevitas cannot be imported"},
        {"kind": "largest_batch", "network": "convnet8", "contender": "p", "limit": 1e9, "batch": 9, "too_large": 10},
    ]
    text = costs.table(records)
    assert "| ours, ste | 0.5 ms (64.2) |" in text
    assert "| Brevitas, ste | brevitas cannot be imported |" in text
    assert "| p | 9 | 10 |" in text
