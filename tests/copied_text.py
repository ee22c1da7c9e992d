"""A text that counts the characters that slices and sums of it copy, so that a test sees work that grows faster than
the text without a clock.
"""

from __future__ import annotations

from typing import SupportsIndex


class CopiedText(str):
    """Slices and sums are such texts too, with the same count, a list of one number."""

    copied: list[int]

    @classmethod
    def of(cls, text: str, copied: list[int]) -> CopiedText:
        made = cls(text)
        made.copied = copied
        return made

    def __getitem__(self, index: SupportsIndex | slice) -> CopiedText:
        return self._made(super().__getitem__(index))

    def __add__(self, other: str) -> CopiedText:
        return self._made(super().__add__(other))

    def __radd__(self, other: str) -> CopiedText:
        return self._made(str(other) + str(self))

    def _made(self, text: str) -> CopiedText:
        self.copied[0] += len(text)
        return CopiedText.of(text, self.copied)
