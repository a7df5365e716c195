"""Drop documents by the address that they come from."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.blocklist import read_list
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Dropped, StageKind
from megatron_ko.errors import DataError


class UrlsOptions(Section):
    """What is listed, and where addresses stand."""

    field: str = Field("url", description="Field or column with the address.")
    domains: Path | None = Field(
        None, description="File of domains, one a line; each with all below it. Lines that begin with '#' are comments."
    )
    words: tuple[str, ...] = Field((), description="Words, whole ones, anywhere in an address; case does not count.")
    words_file: Path | None = Field(None, description="More words, one a line.")
    missing: Literal["drop", "keep"] = Field("drop", description="What becomes of documents without that field.")


class Urls:
    """Drops listed addresses.

    Raises:
        DataError: nothing is listed, or a file cannot be read.
    """

    def __init__(self, options: UrlsOptions) -> None:
        self._options = options
        domains = read_list(options.domains) if options.domains else []
        self._domains = frozenset(_host(f"//{domain.removeprefix('*.').rstrip('.')}") for domain in domains)
        words = {*options.words, *(read_list(options.words_file) if options.words_file else ())}
        if not self._domains and not words:
            raise DataError("a list of addresses without entries", got=str(options), expected="domains, or words")
        listed = "|".join(re.escape(word.casefold()) for word in sorted(words))
        self._words = re.compile(rf"(?<![^\W_])(?:{listed})(?![^\W_])") if words else None

    def __call__(self, page: Page) -> Dropped | None:
        """Look at the address only."""
        address = page.fields.get(self._options.field)
        if not isinstance(address, str) or not address.strip():
            return Dropped("no_url") if self._options.missing == "drop" else None
        host = _host(address if "//" in address else f"//{address}")
        labels = host.split(".")
        if any(".".join(labels[start:]) in self._domains for start in range(len(labels))):
            return Dropped("listed_domain")
        readable = f"{host}/{unquote(address)}".casefold()
        return Dropped("listed_word") if self._words and self._words.search(readable) else None


def _host(address: str) -> str:
    """The host of an address, in letters: xn--... is what Korean domains are written as."""
    try:
        host = (urlsplit(address.strip()).hostname or "").rstrip(".")
        return host.encode("ascii").decode("idna")
    except ValueError:  # no address at all, or letters already
        return (re.search(r"//([^/:?#]+)", address) or [""] * 2)[1].casefold().rstrip(".")


KIND = StageKind(UrlsOptions, Urls)
