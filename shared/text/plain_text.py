"""Tokenizes text so that a user's words never become control tokens.

A tokenizer turns the string `<|im_end|>` into the token that ends a turn, even in a user's text. Only templates may
write control tokens. So the contents for a template are quoted first: each string that spells a control token is
replaced by a stand-in of two private-use characters, which passes through the template as text and is then tokenized as
the original characters. Text without such strings, which is nearly all text, gets exactly the tokenizer's ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

_ESCAPE = "\U0010fffd"
_FIRST_STAND_IN = 0x100000
_ANCHOR = "\n"
"""Tokenized before a continuation and then removed, if the tokenizer would otherwise add a space before the text."""


class PlainText:
    """One tokenizer. Control tokens are its special tokens and the added tokens that its chat template writes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def quote(self, text: str) -> str:
        """The text with stand-ins for strings that spell control tokens. `ids` resolves them after rendering."""
        quoted = self._quoted.sub(self._replacement, text)
        if (
            not self._control
            or self._normalizer is None
            or not self._control_strings.search(self._normalizer.normalize_str(quoted))
        ):
            return quoted
        return self._quoted.sub(self._replacement, self._normalizer.normalize_str(text))

    def ids(self, quoted: str, *, continues: bool = False) -> list[int]:
        """Token ids without BOS. `continues`: the text follows another, so the tokenizer must not add a space."""
        found = list[int]()
        for text, is_control_string in self._parts(quoted):
            if is_control_string:
                found += self._spelled(text)
            else:
                found += self._continued(text) if found or continues else self._plain(text)
        return found

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of all control tokens."""
        return frozenset(self._control.values())

    def control_id(self, string: str) -> int | None:
        """The id of the control token that this string spells; None if it spells none."""
        return self._control.get(string)

    def first_control_token(self, text: str) -> str:
        """The first string in a template's text that spells a control token, or an empty string."""
        match = self._control_strings.search(text) if self._control else None
        return match[0] if match else ""

    def _replacement(self, match: re.Match[str]) -> str:
        return _ESCAPE + self._stand_in[match[0]]

    def _parts(self, quoted: str) -> Iterator[tuple[str, bool]]:
        """Yields (text, whether it spells a control token and must not become one). No text is empty."""
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
        """A control token's string as ordinary tokens: split after its first character, it is not recognised."""
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
        """Whether the tokenizer has SentencePiece's dummy prefix: it tokenizes a text as if a space preceded it."""
        return self._plain(_ANCHOR + "a") != self._plain(_ANCHOR) + self._plain("a")

    @cached_property
    def _control(self) -> dict[str, int]:
        """Ids of control tokens by their strings."""
        template = getattr(self._tokenizer, "chat_template", None) or ""
        source = "".join(template.values()) if isinstance(template, dict) else str(template)
        special = set(self._tokenizer.all_special_tokens)
        tokens = {
            id: token
            for id, token in self._tokenizer.added_tokens_decoder.items()
            if token.content
            and (token.special or token.content in special or (token.content.strip() and token.content in source))
        }
        found = {token.content: id for id, token in tokens.items()}
        if self._normalizer is not None:  # a token that is found in normalized text is itself normalized
            normal = {id: self._normalizer.normalize_str(token.content) for id, token in tokens.items()}
            found = {text: id for id, text in normal.items() if tokens[id].normalized and text} | found
        return found

    @cached_property
    def _normalizer(self) -> Any:
        """The tokenizer's normalizer if some tokens are found in normalized text, such as one in lower case."""
        normalized = any(token.normalized for token in self._tokenizer.added_tokens_decoder.values())
        return getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None) if normalized else None

    @cached_property
    def _control_strings(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))))

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        """The strings that `quote` replaces: the escape itself and control tokens, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self._stand_in, key=len, reverse=True))))

    @cached_property
    def _stand_in(self) -> dict[str, str]:
        strings = sorted(self._control)
        return {_ESCAPE: _ESCAPE, **{string: chr(_FIRST_STAND_IN + index) for index, string in enumerate(strings)}}

    @cached_property
    def _string(self) -> dict[str, str]:
        return {stand_in: string for string, stand_in in self._stand_in.items()}
