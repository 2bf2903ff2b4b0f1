"""The page of the package on PyPI: README.md without what needs the repository. The rest is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

NOTE = "Files that this page names are in the repository of fastcifar, which also has its pictures.\n"


def page(readme: str) -> str:
    """README.md without pictures and comments, and with the name of a file in the place of a link to it."""
    text = re.sub(r"^(!\[[^\]]*\]\([^)]*\)|<!--.*-->)\n+", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", _named, text) + "\n" + NOTE


def _named(link: re.Match[str]) -> str:
    text, file = link.groups()
    return text if file in ("", text) else f"{text} ({file})"


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=page(readme), long_description_content_type="text/markdown")
