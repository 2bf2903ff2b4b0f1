"""The page of the package that PyPI would show: README.md, whole, with nothing in it that leads nowhere there."""

import email
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

pytest.importorskip("setuptools", minversion="77")
ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.prepare_metadata_for_build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """The metadata of a wheel, made of the files that a build needs, without a network."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "setup.py", "requirements-base.txt", "README.md", "LICENSE",
                 "fastcifar/__init__.py"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return email.message_from_string((folder / done.stdout.splitlines()[-1] / "METADATA").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(metadata):
    return metadata.get_payload()


def test_the_metadata_is_whole(metadata):
    assert metadata["Name"] == "fastcifar" and metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "MIT" and "hub" in metadata.get_all("Provides-Extra")
    assert any(need.startswith("torch>=") for need in metadata.get_all("Requires-Dist"))


def test_no_picture_no_comment_and_no_link_into_the_repository(page):
    html = MarkdownIt("commonmark").enable("table").render(page)
    links = re.findall(r'href="([^"]*)"', html)
    assert links and all(link.startswith("https://") for link in links)
    assert "<img" not in html and "<!--" not in page and "![" not in page and "](#" not in page
    assert html.count("<table>") == (ROOT / "README.md").read_text().count("\n| ---")


def test_all_the_rest_of_the_readme_is_there_and_files_are_named(page):
    readme = (ROOT / "README.md").read_text()
    plain = [line for line in readme.splitlines() if "](" not in line and not line.startswith("<!--")]
    assert len(plain) > 100 and not set(plain) - set(page.splitlines())
    files = {target for target in re.findall(r"\]\(([^)#:]+)", readme) if not target.endswith(".png")}
    assert len(files) > 10 and all(name in page for name in files)
    assert "\n- docs/commands.md: all commands" in page and "see commands (docs/commands.md) |" in page
    assert page.rstrip().endswith("which also has its pictures.")


def test_pypis_own_renderer_takes_it(page):
    markdown = pytest.importorskip("readme_renderer.markdown")
    assert "<table>" in markdown.render(page)
