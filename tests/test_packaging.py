"""What a wheel and an sdist hold; a wrong mapping gives an empty wheel without an error."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("autotune", "kernels", "nn", "optim", "perf_reports")
SHIPPED = (".py", ".cpp", ".hpp", ".json", ".html", ".css", ".js")


def sources() -> set[str]:
    """The package's files, by their place in an installed package."""
    ground = ("__init__.py", "__main__.py", "py.typed", "triton_or_stub.py", "version.py", "whole_files.py")
    found = {f"tropigrad/{name}" for name in ground}
    found |= {f"tropigrad/cli/{path.name}" for path in (ROOT / "src" / "tropigrad" / "cli").glob("*.py")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SHIPPED and "out" not in path.relative_to(ROOT).parts:
                found.add(f"tropigrad/{path.relative_to(ROOT)}")
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel built from an sdist built from a copy of the tree, without a network."""
    copy = tmp_path_factory.mktemp("tree") / "tropigrad"
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "out", "dist", ".*_cache", ".hypothesis"),
    )
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources()


def test_sdist_holds_sources_links_and_licence(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    for name in (
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
        "kernels/contract/spec.py",
        "tests/conftest.py",
    ):
        assert name in members
    assert not any("__pycache__" in name for name in members)


def test_wheel_works_where_it_is_unpacked(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import torch, tropigrad, tropigrad.kernels as kernels\n"
        f"assert tropigrad.__file__.startswith({str(tmp_path)!r}), tropigrad.__file__\n"
        "a = torch.randn(5, 6)\n"
        "assert torch.equal(kernels.tropical_matmul(a, a.mT), (a[:, None] + a).amax(-1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_versions_agree():
    import importlib.metadata

    import tropigrad

    assert importlib.metadata.version("tropigrad") == tropigrad.__version__
