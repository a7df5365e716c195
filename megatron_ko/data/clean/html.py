"""Pages that are still HTML become text; entities that were left in text become characters."""

import html as entities
import re
from typing import TYPE_CHECKING

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, StageKind
from megatron_ko.errors import DataError

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_WHOLE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
# Only tags that lay out a page: text about programming is full of other tags, and Markdown of <span>.
_TAG = re.compile(
    r"</?(?:article|blockquote|br|center|dd|div|dl|dt|h[1-6]|hr|li|ol|p|section|table|tbody|td|tfoot|th|thead|tr|ul)"
    r"(?:\s[^<>]{0,2000})?/?>",
    re.I,
)
_MARKDOWN = re.compile(r"^(?:```|~~~|#{1,6} )", re.M)
_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_BLANKS = re.compile(r"[ \t\r\n\f]+")
# These mark the edges of paragraphs and other blocks while text is collected; adjacent ones become one line break.
_PARAGRAPH, _BLOCK = "\x02", "\x01"
_EDGES = re.compile(r"[ \t\n]*[\x01\x02][ \t\n\x01\x02]*")
_GAPS = re.compile(r"[ \t]*\n[ \t]*")
_SPACES = re.compile(r" {2,}")
_REMOVED = "script,style,noscript,template,svg,canvas,iframe,object,select,button,nav,aside,form,header,footer,head"
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table", "ul", "ol", "dl", "figure"})
_BLOCKS = frozenset(
    {"address", "article", "body", "center", "dd", "div", "dt", "fieldset", "figcaption", "hr", "html", "li", "main"}
    | {"section", "tbody", "tfoot", "thead", "tr"}
)


class HtmlOptions(Section):
    """When a text is taken for HTML."""

    min_tag_share: float | None = Field(
        0.05,
        gt=0,
        description="Share of characters inside layout tags (<p>, <div>, <br>, ...) from which a text is a piece of "
        "HTML, unless it is Markdown; a whole page (<html>, <!doctype html>) always is. null: whole pages only.",
    )
    entities: bool = Field(True, description="Turn &amp; and the like into characters in text that has no '<'.")


class Html:
    """The stage. Menus, scripts, forms, heads and feet of a page are left out."""

    def __init__(self, options: HtmlOptions) -> None:
        try:
            from selectolax.lexbor import LexborHTMLParser
        except ImportError:
            raise DataError("selectolax is not installed", got="stage html", remedy="pip install selectolax") from None
        self._options, self._parser = options, LexborHTMLParser

    def __call__(self, page: Page) -> Changed | None:
        """Extract the text of a page, or repair the entities of a text."""
        text = page.text
        if "<" not in text:
            if not self._options.entities or "&" not in text:
                return None
            text, number = _ENTITY.subn(lambda entity: entities.unescape(entity.group()), text)
            return Changed(text, {"entities": number}) if text != page.text else None
        if _WHOLE.match(text):
            return Changed(self._extract(text), {"page": 1})
        if self._options.min_tag_share is None or _tag_share(text) < self._options.min_tag_share:
            return None
        return Changed(self._extract(text), {"fragment": 1})

    def _extract(self, text: str) -> str:
        tree = self._parser(text)
        for node in tree.css(_REMOVED):
            node.decompose()
        return _Extract(tree.body).text() if tree.body is not None else ""


class _Extract:
    """The text below a node, with line feeds where a browser would break the line."""

    def __init__(self, root: "LexborNode") -> None:
        self._parts: list[str] = []  # finished: running text, and <pre> as it stands
        self._run: list[str] = []
        # Iterative, because pages can be nested deeper than Python's stack. A string on it is what ends a node.
        stack: list[LexborNode | str] = [root]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                self._run.append(node)
            else:
                stack += self._open(node)

    def text(self) -> str:
        """What was collected."""
        self._finish_run()
        return "\n\n".join(self._parts)

    def _open(self, node: "LexborNode") -> "list[LexborNode | str]":
        """Handle a node; return what is left to do for its children and its end, in reverse order."""
        tag = node.tag
        if tag == "-text":
            self._run.append(_BLANKS.sub(" ", node.text_content or ""))
            return []
        if tag == "br":
            self._run.append("\n")
            return []
        if tag == "pre":
            self._finish_run()
            self._parts.append(node.text().strip("\n"))
            return []
        if not node.is_element_node:
            return []
        edge = _PARAGRAPH if tag in _PARAGRAPHS else _BLOCK if tag in _BLOCKS else ""
        self._run.append(edge)
        inside = list(node.iter(include_text=True))
        return ["\t" if tag in ("td", "th") else edge, *reversed(inside)]

    def _finish_run(self) -> None:
        text = _EDGES.sub(lambda edges: "\n\n" if _PARAGRAPH in edges.group() else "\n", "".join(self._run))
        text = _SPACES.sub(" ", "\n\n".join(_GAPS.sub("\n", part) for part in text.split("\n\n"))).strip()
        self._run = []
        if text:
            self._parts.append(text)


def _tag_share(text: str) -> float:
    """Share of the characters that stand inside layout tags; none in Markdown."""
    return 0.0 if _MARKDOWN.search(text) else sum(map(len, _TAG.findall(text))) / len(text)


KIND = StageKind(HtmlOptions, Html)
