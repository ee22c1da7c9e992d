"""The fenced code blocks of the pages for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/*.md", "*/**/README.md")
        for path in ROOT.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """One block. `language` is empty if the page doesn't say it."""

    page: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.number}:{self.language}"

    @property
    def commands(self) -> str:
        """The shell commands of a block: all lines of `sh`, in a `console` those after a `$`."""
        if self.language != "console":
            return self.text if self.language == "sh" else ""
        lines, quoted, goes_on = [], False, False
        for line in self.text.splitlines():
            if goes_on or line.startswith("$ "):
                lines.append(line.removeprefix("$ "))
                quoted ^= line.count('"') % 2 == 1
                goes_on = quoted or line.endswith("\\")
        return "\n".join(lines)


def code_blocks(*pages: str) -> Iterator[CodeBlock]:
    """All blocks of these pages; without pages, of all of them."""
    for page in pages or PAGES:
        for number, match in enumerate(_BLOCK.finditer((ROOT / page).read_text()), 1):
            yield CodeBlock(page, number, match[1], match[2])
