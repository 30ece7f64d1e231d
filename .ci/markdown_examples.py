"""A pytest plugin that runs the ```python blocks of Markdown files; the blocks of one file share their names."""

from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[1]

pytest_collect_file = Sybil([PythonCodeBlockParser(), SkipParser()], path=str(ROOT), pattern="*.md").pytest()
