"""Finds stop sequences in streamed text, also across tokens. Knows only text."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds back the longest end of the text that could still become a stop sequence.

    The stop sequence that is complete first ends the text; of several that end together, the longest one. The result
    does not depend on how the text is split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = ""
        """The stop sequence that was found."""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be sent, whether a stop sequence was found). Don't call it again after one was found."""
        if not self._stops:
            return text, False
        held = self._held + text
        places = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if places:
            end, _, self.found = min(places)
            self._held = ""
            return held[: end - len(self.found)], True
        keep = max(self._overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text that was held back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a proper beginning of `stop`."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
