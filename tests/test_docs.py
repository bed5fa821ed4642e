"""The README and the docs are true: examples run, links lead somewhere, drawings and quotations are of this code."""

import contextlib
import dataclasses
import importlib.util
import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str) -> list:
    """The fenced blocks of a language, of all pages."""
    return [
        pytest.param(block, id=f"{named(page)}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))
    ]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# what an example may ask for beside this library's own extras
OTHERS = ("cv2", "kornia", "lightning", "onnxruntime", "safetensors", "transformers")


@pytest.fixture
def registered():
    """Takes back what an example registers."""
    from tropigrad import autotune
    from tropigrad.kernels.contract.registry import REGISTRY

    tables = [(table, dict(table)) for table in (REGISTRY, autotune.TUNABLE)]
    yield
    for table, before in tables:
        for name in table.keys() - before.keys():
            del table[name]


@pytest.mark.parametrize("code", blocks("python"))
@pytest.mark.usefixtures("registered")
def test_example_runs_and_prints_what_it_says(code):
    """The comment lines that follow a call of print() are its output."""
    others = [name for name in OTHERS if re.search(rf"^(?:import|from) {name}\b", code, re.MULTILINE)]
    if missing := [name for name in others if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the example needs {', '.join(missing)}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        if others or "torch.export" in code:
            warnings.simplefilter("ignore")  # theirs, which are none of ours
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == [line.rstrip() for line in expected]


@pytest.mark.parametrize("code", blocks("py"))
def test_what_is_quoted_is_in_the_code(code):
    """A block of `py` is a piece of some file of kernels/, and is not run."""
    assert any(code in path.read_text() for path in (ROOT / "kernels").rglob("*.py")), (
        "nothing in kernels/ reads so now"
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"{named(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(path), f"{named(page)} links to {target}#{anchor}; it has {sorted(anchors(path))}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=named)
def test_every_page_is_linked_from_the_index_or_the_readme(page):
    entrances = ROOT / "docs" / "index.md", ROOT / "README.md"
    assert page in entrances or any(
        f"]({page.relative_to(entrance.parent)})" in entrance.read_text() for entrance in entrances
    )


def test_imports_are_drawn_as_they_are():
    """In a process of its own: what it imports is that of this checkout."""
    command = [sys.executable, str(ROOT / "docs" / "draw_imports.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tables():
    """docs/write_tables.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "docs" / "write_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = re.compile("<!-- (facts|launches|proof) of")


@pytest.mark.parametrize("page", [p for p in PAGES if GENERATED.search(p.read_text()) or "/api/" in str(p)], ids=named)
def test_tables_are_of_this_code(page, tables):
    assert page.read_text() == tables.written(page.read_text()), f"{named(page)} is out of date; run: {tables.COMMAND}"


def test_every_public_op_has_its_facts_on_a_page():
    from tropigrad.kernels import __all__ as public
    from tropigrad.kernels.contract.registry import REGISTRY

    pages = "".join(page.read_text() for page in (ROOT / "docs" / "ops").glob("*.md"))
    assert not [name for name in public if name in REGISTRY and f"<!-- facts of {name}: begin -->" not in pages]


def test_every_environment_variable_is_in_the_table():
    """Of each file of the package, and of nothing else."""
    folders = ("autotune", "kernels", "nn", "optim", "perf_reports", "src/tropigrad/cli")
    sources = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    page = (ROOT / "docs" / "environment-variables.md").read_text()
    rows = re.findall(r"^\| `(TROPIGRAD_\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(set(re.findall(r"\bTROPIGRAD_[A-Z]+(?:_[A-Z]+)*\b", sources)))


def test_every_field_of_a_spec_is_explained():
    from tropigrad.kernels.contract.spec import Spec

    page = (ROOT / "docs" / "adding-an-op.md").read_text().split("### The spec")[1].split("## 2.")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"\w+", row)}
    assert explained == {field.name for field in dataclasses.fields(Spec)}
