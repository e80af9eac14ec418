"""Pages read back: what they load, what they say, and that all of it is theirs."""

import html.parser
import re
from pathlib import Path

HOSTILE = '</title><script src="https://elsewhere.example/x.js">alert("&")</script>'
"""A name that would load something."""


class Page(html.parser.HTMLParser):
    """What a page loads, what it says, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [
            value for name, value in attrs if name in ("src", "href", "action", "data") and value
        ]
        self.tags.append(tag)
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.said.append(data)

    @property
    def words(self) -> str:
        return " ".join(self.said)


def read_page(path: Path) -> Page:
    """Read a page; it is sound and loads nothing from outside itself."""
    page, text = Page(), path.read_text(encoding="utf-8")
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(", text)
    return page
