"""What a measurement depends on is told, and no more than that."""

import json

import pytest

from tropigrad.kernels.runtime import native
from tropigrad.perf_reports import environment


def test_the_fingerprint_is_json_and_names_the_machine():
    found = {
        "machine": environment.machine(),
        "versions": environment.versions(),
        "environment": environment.variables(),
    }
    assert json.loads(json.dumps(found)) == found
    assert found["machine"]["cpu"]
    assert found["machine"]["threads"] >= 1
    assert found["versions"]["torch"]


def test_variables_in_force_are_kept(monkeypatch):
    monkeypatch.setenv("TROPIGRAD_BACKEND", "torch")
    monkeypatch.setenv("UNRELATED_SECRET", "x")
    assert environment.variables()["TROPIGRAD_BACKEND"] == "torch"
    assert "UNRELATED_SECRET" not in environment.variables()


def test_an_absent_compiler_is_absent(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert environment.versions()["compiler"] is None


def wrapper(folder, name="ccache"):
    """A program that runs the command it is given, as ccache does."""
    program = folder / name
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o755)
    return program


def test_a_compiler_of_two_words_is_the_one_that_it_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    plain = native.compiler()
    if plain is None:
        pytest.skip(native.why_no_compiler())
    monkeypatch.setenv("CXX", f"{wrapper(tmp_path)} {' '.join(plain.command)}")
    assert environment.versions()["compiler"] == plain.version.splitlines()[0].strip()


@pytest.mark.parametrize("name", ["TROPIGRAD_BACKEND", "TROPIGRAD_AUTOTUNE"])
def test_a_variable_that_means_nothing_is_named(monkeypatch, set_backend, name):
    set_backend("auto")
    assert environment.wrong_variables() == []
    set_backend("abacus") if name == "TROPIGRAD_BACKEND" else monkeypatch.setenv(name, "abacus")
    (wrong,) = environment.wrong_variables()
    assert wrong.startswith(f"{name} is 'abacus'; expected one of ")


def test_no_revision_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "perf_reports" / "environment.py"))
    assert environment.git_revision() is None
