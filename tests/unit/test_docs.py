"""What the documentation quotes of the program is what the program prints."""

import pytest
from fill_docs import BLOCK, ROOT, filled

PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_what_commands_print(page) -> None:  # type: ignore[no-untyped-def]
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run `make docs`"


def test_some_page_does() -> None:
    assert [page.name for page in PAGES] >= ["models.md"]
