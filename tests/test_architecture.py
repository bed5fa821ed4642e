"""The house: floors, links, names, and one copy of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("autotune", "kernels", "nn", "optim", "perf_reports")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "out" not in path.parts)


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "docs", **options)


def test_floors_hold():
    """In a process of its own: import-linter silences the loggers of this one."""
    check = f"lint_imports(config_filename={str(ROOT / 'pyproject.toml')!r}, no_cache=True)"
    done = run(f"from importlinter.cli import lint_imports; raise SystemExit({check})")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_lead_to_the_real_folders(folder):
    link = ROOT / "src" / "tropigrad" / folder
    assert link.is_symlink(), f"{link} is not a link: git config core.symlinks true && git checkout -- src"
    assert link.readlink() == Path("../..") / folder


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_the_package_are_relative(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        absolute = [name for name in names if name.partition(".")[0] in ("tropigrad", *FOLDERS)]
        assert not absolute, f"{path} would load a second copy of {absolute}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_named_for_what_lives_there_and_say_so(path):
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert path.read_text().startswith('"""'), f"{path} does not open with its purpose"


READABLE = ("autotune", "optim", "nn", "perf_reports", "kernels/runtime", "kernels/contract", "kernels/mathematics")
UNREADABLE = {  # with the reason
    "perf_reports/studies/maxplus/costs.py": "its docstring is its command's help text",
    "kernels/contract/spec.py": "its docstrings are still to be rewritten",
}
RATED = [
    path for path in SOURCES if (name := str(path.relative_to(ROOT))).startswith(READABLE) and name not in UNREADABLE
]


@pytest.mark.parametrize("path", RATED, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_sentences_without_their_signatures(path):
    """They begin with a verb or with the thing itself: "What ...", "Of ...", "As ..." need the code below them."""
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = [
        ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    fragments = [text for text in texts if text.startswith(("What ", "Of ", "As "))]
    assert not fragments, f"{path}: expected docstrings that begin with a verb, or with the thing itself"


def test_no_test_loaded_a_second_copy():
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & set(FOLDERS), "a folder of the package was imported as a top-level module"


def test_import_is_lazy():
    done = run("import sys, tropigrad; assert 'torch' not in sys.modules, 'import tropigrad loads torch'")
    assert done.returncode == 0, done.stderr


def test_import_without_triton():
    """Everything imports, and the CPU works; a forced Triton says what to install."""
    done = run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, tropigrad.kernels, tropigrad.nn, tropigrad.optim, tropigrad.autotune\n"
        "a = torch.eye(3)\n"
        "assert tropigrad.kernels.tropical_matmul(a, a, return_indices=True).values[0, 0] == 2\n"
        "import os; os.environ['TROPIGRAD_BACKEND'] = 'triton'; tropigrad.autotune.reload()\n"
        "try: tropigrad.kernels.tropical_matmul(a, a)\n"
        "except RuntimeError as error: assert 'pip install triton' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    assert done.returncode == 0, done.stderr


def test_import_without_the_extras():
    """The core needs torch and numpy alone."""
    missing = ("pandas", "matplotlib", "scipy", "jinja2", "typer", "rich", "sklearn", "tropical_gemm", "sesum")
    done = run(
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "import tropigrad.kernels, tropigrad.nn, tropigrad.optim, tropigrad.autotune\n"
        "import runpy; sys.argv = ['tropigrad', 'report']\n"
        "runpy.run_module('tropigrad', run_name='__main__')\n"
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "the tropigrad command needs typer: pip install 'tropigrad[cli]'"


def test_an_unknown_part_is_named():
    import tropigrad

    with pytest.raises(AttributeError, match="has no attribute 'kernel'; it has autotune, kernels"):
        _ = tropigrad.kernel
