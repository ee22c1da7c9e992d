"""Tokenizes text so that a user's words never become control tokens.

A tokenizer turns the string `<|im_end|>` into the token that ends a turn, even in a user's text. Only templates may
write control tokens. So the contents for a template are quoted first: each character with which a control token begins
is replaced by a stand-in of two private-use characters, which passes through the template as text. A template that
removes a part of a text (SmolLM3's removes `/think`) makes no control token of the rest. After rendering, strings of
control tokens with such a character are tokenized as ordinary text. Text without them, which is nearly all text, gets
exactly the tokenizer's ids.

A chat template may look for such strings, as Qwen 3's leaves out an earlier answer's thoughts up to `</think>`. So text
can also be marked: the strings stay, between two private-use characters, as transformers' `sanitize_control_tokens`
does. Marks hide white space that the template would strip, so `as_rendered` moves them into a rendering without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from functools import cached_property, lru_cache
from typing import Any

_ESCAPE, _OPEN, _CLOSE = _MARKS = "\U0010fffd\U0010fffc\U0010fffb"
_FIRST_STAND_IN = 0x100000
_MARKER = re.compile(r"<.+>|\[.+\]|\{.+\}", flags=re.DOTALL)
_ANCHORS = ("\n", ".", "a")
"""Tokenized before a continuation and then removed, if the tokenizer would otherwise add a space before the text. The
first one that doesn't become one token with the beginning of the text.
"""


class PlainText:
    """One tokenizer. Control tokens are its special tokens, the added tokens that its chat template writes, and those
    in `template`, the text around inputs, that have the form of a marker: <...>, [...] or {...}.
    """

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        self._tokenizer, self._template = tokenizer, template

    def readable(self, text: str) -> str:
        """The text, or in normalized form if it spells control tokens only in that form."""
        if self._normalizer is None or not self._control:
            return text
        normal: str = self._normalizer.normalize_str(self._control_strings.sub(_ESCAPE, text))
        return self._normalizer.normalize_str(text) if self._control_strings.search(normal) else text

    def quote(self, text: str) -> str:
        """The text with stand-ins for characters that begin control tokens. `ids` resolves them after rendering."""
        return self._quoted.sub(self._stand_in_of, self.readable(text))

    def mark(self, text: str) -> str:
        """The text with marks around strings that spell control tokens. `ids` removes them after rendering."""
        return self._markable.sub(self._marked, self.readable(text))

    def as_rendered(self, quoted: str, plain: str, marked: str) -> str:
        """Of three renderings of the same messages, quoted, as they are, and marked: the second one with the marks of
        the third, else the third, else the first.

        One is used only if the template wrote the same control tokens in it as in the first one.
        """
        controls = self.controls(quoted)
        moved = self._with_marks_of(marked, plain)
        return next((found for found in (moved, marked) if found and self.controls(found) == controls), quoted)

    def _with_marks_of(self, marked: str, plain: str) -> str:
        """`plain` with marks around the control strings that have them in `marked`. Empty if its strings are others, or
        if it has marks that a user wrote.
        """
        if any(mark in plain for mark in _MARKS):
            return ""
        strings = list[tuple[str, bool]]()
        for text, is_control_string in self._parts(marked):
            found = [text] if is_control_string else self._control_strings.findall(text)
            strings += [(string, is_control_string) for string in found]
        if not self._control or [string for string, _ in strings] != self._control_strings.findall(plain):
            return ""
        marks = iter(strings)
        return self._control_strings.sub(lambda match: self._marked(match) if next(marks)[1] else match[0], plain)

    def controls(self, rendered: str) -> list[str]:
        """The control tokens that a rendered text has beside those in quoted and marked texts, in order."""
        if not self._control:
            return []
        texts = (text for text, is_control_string in self._parts(rendered) if not is_control_string)
        return [found[0] for text in texts for found in self._control_strings.finditer(text)]

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

    def first_hidden_token(self, text: str) -> str:
        """The first string in a text that spells a special token, which an answer's text never has, or empty."""
        found = self._control_strings.findall(text) if self._control else []
        return next((string for string in found if string in self._hidden), "")

    def _stand_in_of(self, match: re.Match[str]) -> str:
        return _ESCAPE + self._stand_in[match[0]]

    def _marked(self, match: re.Match[str]) -> str:
        is_control = match[0] in self._control
        return f"{_OPEN}{match[0]}{_CLOSE}" if is_control else self._stand_in_of(match)

    def _parts(self, quoted: str) -> Iterator[tuple[str, bool]]:
        """Yields (text, whether it spells a control token and must not become one). No text is empty.

        A mark that a template has separated from its string still separates, so that the texts around it don't join to
        a control token.
        """
        if not any(mark in quoted for mark in _MARKS):  # faster than the pattern
            yield from [(quoted, False)] if quoted else []
            return
        begin, pieces, length, of_user = 0, list[str](), 0, set[int]()
        """The text since the last mark, its length, and indices in it of characters that had stand-ins."""
        for match in self._replacements.finditer(quoted):
            pieces.append(quoted[begin : match.start()])
            length, begin = length + len(pieces[-1]), match.end()
            if match["stand_in"]:
                if (char := self._char.get(match["stand_in"])) is not None:
                    of_user.add(length)
                pieces.append(char if char is not None else match[0])
                length += len(pieces[-1])
                continue
            yield from self._split("".join(pieces), of_user)
            pieces, length, of_user = [], 0, set()
            if match["marked"]:
                yield match["marked"], True
        yield from self._split("".join([*pieces, quoted[begin:]]), of_user)

    def _split(self, text: str, of_user: Set[int]) -> Iterator[tuple[str, bool]]:
        """The parts of a text without marks."""
        begin = 0
        for match in self._control_strings.finditer(text) if of_user and self._control else ():
            if of_user.isdisjoint(range(*match.span())):
                continue
            if match.start() > begin:
                yield text[begin : match.start()], False
            yield match[0], True
            begin = match.end()
        if begin < len(text):
            yield text[begin:], False

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
        for anchor in _ANCHORS:
            before, both = self._plain(anchor), self._plain(anchor + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._plain(text)

    @cached_property
    def _adds_a_space(self) -> bool:
        """Whether the tokenizer has SentencePiece's dummy prefix: it tokenizes a text as if a space preceded it."""
        anchor = _ANCHORS[0]
        return self._plain(anchor + "a") != self._plain(anchor) + self._plain("a")

    @cached_property
    def _control(self) -> dict[str, int]:
        """Ids of control tokens by their strings."""
        template = getattr(self._tokenizer, "chat_template", None) or ""
        source = "".join(template.values()) if isinstance(template, dict) else str(template)
        source += _renderings(self._tokenizer, source) if source else ""
        special = set(self._tokenizer.all_special_tokens)

        def is_control(token: Any) -> bool:
            text = token.content
            if token.special or text in special:
                return bool(text)
            return bool(text.strip()) and (
                text in source or (text in self._template and _MARKER.fullmatch(text) is not None)
            )

        tokens = {id: token for id, token in self._tokenizer.added_tokens_decoder.items() if is_control(token)}
        found = {token.content: id for id, token in tokens.items()}
        if self._normalizer is not None:  # a token that is found in normalized text is itself normalized
            normal = {id: self._normalizer.normalize_str(token.content) for id, token in tokens.items()}
            found = {text: id for id, text in normal.items() if tokens[id].normalized and text} | found
        return found

    @cached_property
    def _hidden(self) -> frozenset[str]:
        """The strings of special tokens."""
        tokens, special = self._tokenizer.added_tokens_decoder, set(self._tokenizer.all_special_ids)
        return frozenset(string for string, id in self._control.items() if id in special or tokens[id].special)

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
        """The characters that `quote` replaces."""
        return re.compile(f"[{re.escape(''.join(self._stand_in))}]")

    @cached_property
    def _markable(self) -> re.Pattern[str]:
        """The strings that `mark` marks, and the marks themselves, which it replaces."""
        strings = [self._control_strings.pattern] if self._control else []
        return re.compile("|".join([*strings, f"[{_MARKS}]"]))

    @cached_property
    def _replacements(self) -> re.Pattern[str]:
        """A stand-in, a string between marks, or a mark without its string."""
        marked = (
            f"{_OPEN}(?P<marked>{self._control_strings.pattern}){_CLOSE}|" if self._control else "(?P<marked>(?!))|"
        )
        return re.compile(f"{_ESCAPE}(?P<stand_in>.)|{marked}[{_OPEN}{_CLOSE}]", flags=re.DOTALL)

    @cached_property
    def _stand_in(self) -> dict[str, str]:
        """Stand-ins of the characters that begin control tokens, and of the marks."""
        first = sorted({string[0] for string in self._control})
        return {mark: mark for mark in _MARKS} | {
            char: chr(_FIRST_STAND_IN + index) for index, char in enumerate(first)
        }

    @cached_property
    def _char(self) -> dict[str, str]:
        return {stand_in: char for char, stand_in in self._stand_in.items()}


@lru_cache(maxsize=64)  # each request to the bare model needs it
def _renderings(tokenizer: Any, _source: str) -> str:
    """What the chat template, whose text is `_source`, writes around messages of each role. It may join control tokens
    from pieces, as `'<|' + message.role + '|>'`.
    """
    found = ""
    for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",)):
        turns = [{"role": role, "content": _ESCAPE} for role in roles]
        try:
            found += tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # a chat template is the model's own code, and may refuse any role
            continue
    return found
