"""The page on the package index: the README without links that lead nowhere there.

Everything else about the package is in `pyproject.toml`.
"""

import re
from pathlib import Path

from setuptools import setup


def index_page(readme: str) -> str:
    """Pictures of the repository are left out, and links into it become their words."""
    readme = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n", "", readme, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", readme)


if __name__ == "__main__":
    page = index_page(Path(__file__).with_name("README.md").read_text(encoding="utf-8"))
    setup(long_description=page, long_description_content_type="text/markdown")
