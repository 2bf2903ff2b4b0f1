"""requirements-lock.txt pins the test environment: every package by version and SHA-256, within the open ranges."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-lock.txt").read_text()
PINS = [Requirement(line) for line in re.findall(r"^(?![#\s])(.+?) ?\\$", LOCK, re.MULTILINE)]


def ranges(name):
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            yield from ranges(line[3:])
        elif line and not line.startswith("#"):
            yield Requirement(line)


def test_every_pin_is_one_version_with_digests_and_no_address():
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip())
    assert len(blocks) == len(PINS) > 50
    assert all(re.fullmatch(r"\S+==\S+( ; .+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+", block) for block in blocks)
    assert "://" not in LOCK and "/opt" not in LOCK and "--index" not in LOCK


def test_every_range_is_met_on_every_version_of_python():
    for python in ("3.11", "3.12", "3.13"):
        here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
                "platform_machine": "x86_64"}  # fmt: skip
        pinned = {p.name: p for p in PINS if p.marker is None or p.marker.evaluate(here)}
        for wanted in ranges("requirements-dev.txt"):
            (version,) = pinned[re.sub(r"[-_.]+", "-", wanted.name).lower()].specifier
            assert wanted.specifier.contains(version.version), (python, wanted)


def test_ci_installs_the_lock():
    assert "make test LOCKED=1" in (ROOT / ".ci/run").read_text()
