"""The documentation as a site: it builds without a warning, and its pages ask for nothing over the network."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WANTED = ("mkdocs", "material", "mkdocstrings")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in WANTED),
    reason="the site needs pip install 'tropigrad[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_of_docs_is_a_page_of_the_site(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert not {page for page in pages if not (site / page).exists()}


def test_no_page_asks_for_anything_over_the_network(site):
    """Scripts, styles and pictures are files of the site; a link that a reader may follow is none of these."""
    asked = [
        (str(page.relative_to(site)), address)
        for page in site.rglob("*.html")
        for address in re.findall(
            r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"' >]+)""", page.read_text("utf-8")
        )
        + re.findall(
            r"""<link\b(?![^>]*rel="canonical")[^>]*\bhref=["']?((?:https?:)?//[^"' >]+)""", page.read_text("utf-8")
        )
    ]
    assert not asked
    styles = [
        path
        for path in site.rglob("*.css")
        if re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text("utf-8"))
    ]
    assert not styles


def test_diagrams_are_drawn_and_links_lead_to_the_sources(site):
    page = (site / "architecture.html").read_text("utf-8")
    assert page.count('<svg class="flowchart"') == 2
    assert 'class="mermaid"' not in page
    assert 'href="source/kernels/runtime/dispatch.py.html"' in page
    assert "Triton's interpreter" in (site / "repository" / "CONTRIBUTING.html").read_text("utf-8")


@pytest.mark.parametrize("package", ["kernels", "nn", "nn.onnx", "optim", "autotune", "perf_reports.gate"])
def test_every_public_name_has_its_docstring_on_the_site(site, package):
    """Its own: not that of the module of the same name, which a function of kernels may be in."""
    module = importlib.import_module(f"tropigrad.{package}")
    page = (site / "api" / f"{package.split('.')[-1] if package != 'nn.onnx' else 'nn'}.html").read_text("utf-8")
    linked = re.findall(r'<td><a class="autorefs[^>]*href="#([^"]+)"><code>(\w+)</code>', page)
    paths = {name: path for path, name in linked}
    assert not [name for name in module.__all__ if f'id="{paths.get(name)}"' not in page]
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, type) or callable(thing):
            folder, _, last = paths[name].rpartition(".")
            assert getattr(importlib.import_module(folder), last) is thing
