"""The list of faults: files in faults/, one for each room, each fault one wrong piece of code that a test must see."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).parent / "faults"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """`old`, found once in `file`, becomes `new`; one of `tests` (files or single tests) must then fail."""

    room: str
    name: str
    what: str
    """The fault in words."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    stub: str = ""
    """Regular expression of the scenarios of tests/cuda_stub that its tests need, as `group: name`; none: all."""

    def digest(self, root: Path) -> str:
        """Of all that its outcome depends on: itself, its file and the files of its tests."""
        files = [self.file, *dict.fromkeys(test.partition("::")[0] for test in self.tests)]
        return hashlib.sha256(b"\0".join([repr(self).encode(), *((root / f).read_bytes() for f in files)])).hexdigest()

    def spoiled(self, text: str) -> str:
        """The text of its file with the fault in it. ValueError unless the old text is there exactly once."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(
                f"fault {self.name}: its old text is {found} times in {self.file}; where the code has changed on "
                f"purpose, change `old` and `new` in tests/mutants/faults/{self.room}.toml, too: the same fault in "
                f"the new code (python tests/mutants/run_mutants.py {self.name} tells whether it is caught)"
            )
        return text.replace(self.old, self.new)


def read_faults(folder: Path = LIST) -> list[Fault]:
    """All faults, by room and in the order of the files. TypeError for an entry that lacks something."""
    return [
        Fault(room=path.stem, **{**entry, "tests": tuple(entry["tests"])})
        for path in sorted(folder.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["fault"]
    ]
