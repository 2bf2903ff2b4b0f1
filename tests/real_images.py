"""Where the 60,000 images of CIFAR-10 are, if they are next to the project, and the marks of tests that need them.

The fixture `real` (conftest.py) reads them once: 60 to 90 seconds, or one with FASTCIFAR_TEST_CACHE=FOLDER, which keeps
the decoded images between test runs.
"""

from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-png.tar.xz"

needs_real_images = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not next to the project"),
    pytest.mark.xdist_group("real images"),  # one process: the archive is decoded once
]
