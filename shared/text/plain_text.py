"""Token ids of text in which a user's words never become control tokens.

A tokenizer turns the string `<|im_end|>` into the token that ends a turn, whoever wrote it. Only templates may do that.
So the contents that a template takes in are quoted first: each string that spells a control token is replaced by a
stand-in of two private-use characters, which passes through the template as text, and is tokenized afterwards as the
characters that it was. Text without such strings, which is nearly all text, gets exactly the ids that the tokenizer
gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

_ESCAPE = "\U0010fffd"
_FIRST_STAND_IN = 0x100000
_ANCHOR = "\n"
"""Tokenized in front of a continuation and taken off again, where the tokenizer would put a space before it otherwise.
"""


class PlainText:
    """Tokenizes for one transformers tokenizer. Control tokens are its special ones, and those that its chat template
    writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def quote(self, text: str) -> str:
        """The text with stand-ins for what spells a control token: for `ids`, after a template took it in."""
        return self._quoted.sub(lambda match: _ESCAPE + self._stand_in[match[0]], text)

    def ids(self, quoted: str, *, continues: bool = False) -> list[int]:
        """Token ids without BOS. `continues`: the text follows another, so no tokenizer may begin it with a space of
        its own.
        """
        found = list[int]()
        for text, is_control_string in self._parts(quoted):
            if is_control_string:
                found += self._spelled(text)
            else:
                found += self._continued(text) if found or continues else self._plain(text)
        return found

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self._control.values())

    def control_id(self, string: str) -> int | None:
        return self._control.get(string)

    def first_control_token(self, text: str) -> str:
        """The first string in a template's own text that is a control token, or nothing."""
        match = self._control_strings.search(text) if self._control else None
        return match[0] if match else ""

    def _parts(self, quoted: str) -> Iterator[tuple[str, bool]]:
        """(text, whether it is a string that spells a control token and must not become one), none empty."""
        begin = 0
        for match in re.finditer(f"{_ESCAPE}(.)", quoted, flags=re.DOTALL):
            string = self._string.get(match[1])
            if string is None:
                continue
            if match.start() > begin:
                yield quoted[begin : match.start()], False
            yield string, True
            begin = match.end()
        if begin < len(quoted):
            yield quoted[begin:], False

    def _spelled(self, string: str) -> list[int]:
        """A control token's string as ordinary tokens: cut after its first character, it is no longer recognised."""
        if len(string) == 1:
            ids = self._tokenizer(string, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [token for token in ids if token not in self.control_ids]
        return self._continued(string[0]) + self.ids(self.quote(string[1:]), continues=True)

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continued(self, text: str) -> list[int]:
        if not self._adds_a_space:
            return self._plain(text)
        anchor, both = self._plain(_ANCHOR), self._plain(_ANCHOR + text)
        return both[len(anchor) :] if both[: len(anchor)] == anchor else self._plain(text)

    @cached_property
    def _adds_a_space(self) -> bool:
        """SentencePiece's dummy prefix: a text's first word is tokenized as if a space stood before it."""
        return self._plain(_ANCHOR + "a") != self._plain(_ANCHOR) + self._plain("a")

    @cached_property
    def _control(self) -> dict[str, int]:
        """Ids of control tokens by their strings."""
        template = getattr(self._tokenizer, "chat_template", None) or ""
        source = "".join(template.values()) if isinstance(template, dict) else str(template)
        special = set(self._tokenizer.all_special_tokens)
        return {
            token.content: id
            for id, token in self._tokenizer.added_tokens_decoder.items()
            if token.content
            and (token.special or token.content in special or (token.content.strip() and token.content in source))
        }

    @cached_property
    def _control_strings(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))))

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        """What `quote` replaces: the escape itself, and control tokens, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self._stand_in, key=len, reverse=True))))

    @cached_property
    def _stand_in(self) -> dict[str, str]:
        strings = sorted(self._control)
        return {_ESCAPE: _ESCAPE, **{string: chr(_FIRST_STAND_IN + index) for index, string in enumerate(strings)}}

    @cached_property
    def _string(self) -> dict[str, str]:
        return {stand_in: string for string, stand_in in self._stand_in.items()}
