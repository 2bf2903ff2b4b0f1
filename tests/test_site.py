"""`make docs` builds the site without a warning, with every page in its navigation and no broken link."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

import fastcifar
from fastcifar.config.schedules import Schedule
from fastcifar.config.settings import PARTS

ROOT = Path(__file__).resolve().parents[1]
COPIED = ["fastcifar", "docs", "bench/README.md", "Makefile", "zensical.toml", "LICENSE", "requirements*.txt", "*.md"]


def make_docs(project: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, with the packages of these tests in place of an environment of its own."""
    command = ["make", "-o", ".venv/.dev", "docs", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    if not (Path(sys.executable).parent / "zensical").exists() or not shutil.which("make"):
        pytest.skip("zensical or make is not installed")
    folder = tmp_path_factory.mktemp("site")
    for path in [p for pattern in COPIED for p in ROOT.glob(pattern)]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    return folder


def test_the_site_is_whole(project):
    done = make_docs(project)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "No issues found" in said, said[-3000:]
    assert "griffe" not in said and "arning" not in said, said  # docstrings that do not fit their functions
    site = project / "build/site"
    assert "your own images by a flag" in (site / "index.html").read_text()  # the README
    reference = (site / "docs/reference/index.html").read_text()
    assert "Trains a model." in reference  # a docstring
    assert (
        all(f'id="fastcifar.{name}"' in reference for name in fastcifar.__all__)
        and 'id="fastcifar.api' not in reference
    )
    # The theme draws mermaid with a script of 3 MB from another server; our diagrams are text.
    assert not any('class="mermaid"' in page.read_text() for page in site.rglob("*.html"))
    links = [(page, unquote(link)) for page in site.rglob("*.html")
             for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text())]  # fmt: skip
    local = [(page, link) for page, link in links if "://" not in link and not link.startswith("/")]
    assert len(local) > 100 and not [(page.name, link) for page, link in local if not (page.parent / link).exists()]


def test_a_broken_link_is_an_error(project):
    page = project / "docs/api.md"
    page.write_text(page.read_text() + "\n[no](nowhere.md)\n")
    assert make_docs(project).returncode != 0


def test_the_reference_has_every_public_name():
    """Each under the name that users import, and the parts of a Config beside them."""
    named = re.findall(r"^::: (.+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    parts = [kind.__name__ for kind in PARTS.values() if kind is not Schedule]
    public = [f"fastcifar.{name}" for name in fastcifar.__all__]
    assert sorted(named) == sorted([*public, *(f"fastcifar.config.config.{name}" for name in parts)])


def pages_in(value):
    if isinstance(value, str):
        return {value}
    return set().union(*(map(pages_in, value.values() if isinstance(value, dict) else value)))


def test_every_page_is_in_the_navigation():
    """The pages of the log are reached from its table."""
    listed = pages_in(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "docs/log/README.md", ROOT / "bench/README.md"]
    assert listed == {str(path.relative_to(ROOT)) for path in pages}
    logs = {path.name for path in (ROOT / "docs/log").glob("2*.md")}
    assert logs == set(re.findall(r"\]\((2[^)]+)\)", (ROOT / "docs/log/README.md").read_text()))
