"""The code in the documentation runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["docs/api.md"]


def blocks(page: str) -> str:
    """All Python of a page, in order."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, tiny_network):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "cache"))
    code = blocks(page)
    assert code
    exec(compile(code, page, "exec"), {"__name__": "a page"})


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]
    broken = []
    for page in pages:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        broken += [f"{page.relative_to(ROOT)}: {target}" for target in targets if not (page.parent / target).exists()]
    assert not broken


def test_figures_outside_the_log_are_of_the_lossless_images():
    """The log has what was measured on a copy of CIFAR-10 with JPEG loss."""
    named = set()
    for page in (ROOT / "README.md", ROOT / "RECORDS.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"JPEG (copy|loss)", page.read_text()), page.name
        named |= set(re.findall(r"records/(\d{4}[\w.-]*\w)", page.read_text()))
    files = [p for name in named for p in (ROOT / "records" / name).rglob("*") if p.suffix in (".json", ".jsonl")]
    assert len(files) >= 8 and not [p for p in files if '"cifar10-jpeg"' in p.read_text()]
