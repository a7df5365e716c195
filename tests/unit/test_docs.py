"""What the documentation quotes of the program is what the program prints."""

from pathlib import Path

import pytest
from fill_docs import BLOCK, EXAMPLE, ROOT, filled, with_examples

TEXTS = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [page for page, text in TEXTS.items() if BLOCK.search(text)]
EXAMPLES = [page for page, text in TEXTS.items() if EXAMPLE.search(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_what_commands_print(page: Path) -> None:
    assert filled(TEXTS[page]) == TEXTS[page], "run `make docs`"


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_print_what_pages_show(page: Path, shared_data: Path, tmp_path: Path) -> None:
    assert with_examples(TEXTS[page], tmp_path) == TEXTS[page], "run `python tools/fill_docs.py --examples`"


def test_some_pages_do() -> None:
    assert {page.name for page in PAGES} >= {"models.md", "convert.md"}
    assert [page.name for page in EXAMPLES] == ["data.md"]
