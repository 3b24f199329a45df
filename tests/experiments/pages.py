"""Reads an HTML page strictly: what does not close, nests wrongly or leads nowhere is an error."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
BLOCKS = {"div", "p", "ul", "ol", "dl", "table", "section", "figure", "details", "pre", "h1", "h2", "h3", "nav", "main"}
PARENTS = {
    "li": {"ul", "ol"},
    "dt": {"dl"},
    "dd": {"dl"},
    "tr": {"thead", "tbody"},
    "thead": {"table"},
    "tbody": {"table"},
    "caption": {"table"},
    "th": {"tr"},
    "td": {"tr"},
    "summary": {"details"},
    "figcaption": {"figure"},
}
PHRASING = {"p", "h1", "h2", "h3", "span", "summary", "strong", "caption"}
"""Elements that hold text and no blocks."""

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """Tags in order; fails on tags that do not close in order or stand where they may not."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, Attributes]] = []
        self.texts: list[str] = []
        self.heard: list[tuple[str, str]] = []
        """(innermost tag, text)."""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        parent = self.open[-1] if self.open else ""
        assert parent in PARENTS.get(tag, {parent}), f"<{tag}> in <{parent}>"
        assert tag not in BLOCKS or not PHRASING & set(self.open), f"<{tag}> inside {self.open}"
        assert tag != "a" or "a" not in self.open or "svg" in self.open
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID or "svg" in self.open, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        self.heard.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[Attributes]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def whole(self) -> str:
        """All text, with single spaces."""
        return " ".join("".join(self.texts).replace("\u00a0", " ").split())

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return [value for _, attributes in self.tags if (value := attributes.get("id"))]

    @property
    def links(self) -> list[tuple[str, str, str]]:
        """(tag, attribute, value) of all that can lead or load somewhere."""
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "formaction", "ping", "background")
        return [(tag, n, value) for tag, attributes in self.tags for n in names if (value := attributes.get(n))]
