"""What the site has beside the pages of docs/, which are written for GitHub: MkDocs calls these functions (mkdocs.yml).

* Files outside docs/ that a page links to are pages of the site: the README, and sources with their syntax coloured.
* Lists may follow a paragraph without an empty line, as they may on GitHub.
* Diagrams of Mermaid are drawn here: the site runs no foreign script and asks for nothing over the network.
* The pages of docs/api get the whole docstrings below their tables of names.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from draw_flowchart import svg
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".cpp": "cpp", ".hpp": "cpp", ".toml": "toml", ".html": "html", ".json": "json"}


def _outside(page: str, target: str) -> str:
    """The path in the repository that a page's link leads to, where it is outside docs/ or a folder; else ""."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    inside = path.startswith("docs/") and (ROOT / path).is_file()
    return "" if inside else path


def _place(path: str) -> str:
    """The page of the site that shows a file, or the list of a folder, of the repository."""
    if path.endswith(".md"):
        return f"repository/{path}"
    return f"source/{path}/index.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def _shown(path: str) -> str:
    """The page that shows a file or a folder, in Markdown."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if file.is_dir():
        return head + "".join(f"* `{item.name}`, {item.stat().st_size:,} bytes\n" for item in sorted(file.iterdir()))
    return f"{head}`````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n`````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that show what lies outside docs/, as far as links reach."""
    waiting = {f.src_uri: f.content_string for f in files.documentation_pages()}
    shown: set[str] = set()
    while waiting:
        page, text = waiting.popitem()
        source = page.removeprefix("repository/")
        for target, _ in LINK.findall(text):
            path = _outside(page, target) if source == page else _of_repository(source, target)
            if path and path not in shown and (ROOT / path).exists():
                shown.add(path)
                place, content = _place(path), _shown(path)
                files.append(File.generated(config, place, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
                if path.endswith(".md"):
                    waiting[place] = content
    return files


def _of_repository(page: str, target: str) -> str:
    """The path that a link of a page outside docs/ leads to; "" where docs/ has a page of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return "" if path.startswith("docs/") and (ROOT / path).is_file() else path


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page as MkDocs is to read it."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    parts, at = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_text(markdown[at : fence.start()], here), _block(fence[0])]
        at = fence.end()
    text = "".join([*parts, _text(markdown[at:], here)])
    return _with_docstrings(text) if here.startswith("api/") else text


def _text(text: str, here: str) -> str:
    """What stands between blocks of code: links that lead into the site, lists that begin where GitHub sees them."""
    text = LINK.sub(lambda link: _link(here, link[1]) + (link[2] or ""), text)
    return re.sub(r"^((?!\s*(?:[*\-]|\d+\.) |\s|\||#).+\n)(?=(?:[*\-]|\d+\.) )", r"\1\n", text, flags=re.MULTILINE)


def _link(here: str, target: str) -> str:
    if here.startswith("repository/"):
        source = here.removeprefix("repository/")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = path.removeprefix("docs/") if not _of_repository(source, target) else _place(path)
    else:
        path = _outside(here, target)
        if not path:
            return target
        place = _place(path)
    return posixpath.relpath(place, posixpath.dirname(here) or ".")


def _block(block: str) -> str:
    if not block.startswith("```mermaid"):
        return re.sub(r"\A```py\n", "```python\n", block)
    return svg("\n".join(block.splitlines()[1:-1]), "Which module imports from which")


def _with_docstrings(text: str) -> str:
    """The page, its names leading to their docstrings, which follow the tables."""

    def table(match: re.Match[str]) -> str:
        paths = _paths(f"tropigrad.{match[1]}")
        names = re.findall(r"^\| `(\w+)` \|", match[0], re.MULTILINE)
        rows = re.sub(r"^\| `(\w+)` \|", lambda row: f"| [`{row[1]}`][{paths[row[1]]}] |", match[0], flags=re.MULTILINE)
        return rows + "".join(f"\n\n::: {paths[name]}\n" for name in names)

    text = text.replace("The site that `make docs` builds has the docstrings in full below this table.\n", "")
    return re.sub(r"<!-- names of ([\w.]+): begin -->.*?<!-- names of \1: end -->", table, text, flags=re.DOTALL)


def _paths(package: str) -> dict[str, str]:
    """The definitions that a package exports, by name: a function may have the name of the module that it is in."""
    folder = ROOT / package.removeprefix("tropigrad.").replace(".", "/")
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    paths: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            paths |= {alias.name: f"{package}.{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            paths[node.name] = f"{package}.{node.name}"
    return paths
