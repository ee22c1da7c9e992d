"""Compiles guides with llguidance (https://github.com/guidance-ai/llguidance): an Earley parser over a lexer of regular
expression derivatives, in Rust.

Its limits count work and not time, so a guide that is too complex is refused after the same work on every machine:
construction takes up to about a second for a guide of the largest size, and a mask up to about ten milliseconds.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from inference_service.engine.guide.matcher import CompiledGuide, brief
from shared.errors import InvalidInput
from shared.model.base_model import BaseModel
from shared.text.plain_text import PlainText
from shared.text.token_bytes import ByteTable, byte_table
from shared.values.guide import Guide

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=25_000, max_lexer_states=20_000,
    max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip
_SPACE_PATTERN = r"[\x20\x0A\x0D\x09]{1,64}"
"""White space between the parts of JSON. Without a bound, small models write spaces until the limit of tokens."""

_REWORDED = (
    (r"^Unimplemented keys: \[(.*)\]", r"these keywords are not supported: \1"),
    (r"^NoExtension\w*|^no token continues the answer", "no text can have this form"),
    (r"^Unsatisfiable schema: ", "no text can have this form: "),
    (r"^oneOf constraints are not supported.*", "oneOf needs schemas that exclude each other; use anyOf"),
    (r"^Pointer '(.*)' does not exist", r"the $ref '#\1' points to nothing in the schema"),
    (r"^Resource '(.*)' is not present in .*", r"the $ref '\1' points outside the schema; put its target into $defs"),
    (r"^Failed to generate regex for .* range: .*", "a bound of a number is too large"),
    (r" \d+ \| .*\^$", ""),
    (r"^(?:.*in regex\): )?regex parse error: (.*?)\s*\^+ error: ", r"the pattern \1 can't be read: "),
    (r"^at (\d+)\((\d+)\)", r"line \1, column \2"),
)


_CONTROL_MARK = 0xFF
"""llguidance's mark of a control token; no UTF-8 text has this byte."""


class _Tokenizer:
    """What `TokenizerWrapper` wants: the bytes of every token, and the tokens of a text, none of which are control
    tokens. The bytes are those that the detokenizer writes, so a guide holds for exactly the text of a stream.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Any, table: ByteTable, vocab_size: int, end_id: int) -> None:
        self._plain = PlainText(tokenizer)
        self.eos_token_id = end_id
        control = self._plain.control_ids | set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(sorted(control))
        pieces = list(table.pieces[:vocab_size]) + [b""] * (vocab_size - len(table.pieces))
        pieces = [b"" if piece[:1] == bytes([_CONTROL_MARK]) else piece for piece in pieces]
        for token_id, name in zip(sorted(control), names, strict=True):
            if token_id < vocab_size:
                pieces[token_id] = (name or "").encode()
        self.tokens = pieces
        self.special_token_ids = [token_id for token_id in sorted(control) if token_id < vocab_size]

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._plain.ids(self._plain.quote(plain), continues=True)


def vocabulary(tokenizer: Any, vocab_size: int, end_id: int | None) -> tuple[LLTokenizer, ByteTable] | None:
    """The vocabulary of a model with `vocab_size` logits and its byte table.

    None if the tokenizer has no end token, or if its tokens have no bytes of their own (WordPiece and the like).
    Building takes about 10 us a token and holds the interpreter, so do it before requests arrive.
    """
    table = byte_table(tokenizer)
    if table is None or end_id is None:
        return None
    wrapper = TokenizerWrapper(_Tokenizer(tokenizer, table, vocab_size, end_id))
    return LLTokenizer(wrapper, eos_token=[end_id]), table


class GuideCompiler:
    """Compiles guides for one model's tokenizer. Thread-safe; `compile` releases the interpreter while it works."""

    def __init__(self, base: BaseModel) -> None:
        end_ids = sorted(id for id in base.stop_token_ids if id < base.info.vocab_size)
        self._end_id = end_ids[0] if end_ids else -1
        found = vocabulary(base.tokenizer, base.info.vocab_size, end_ids[0] if end_ids else None)
        self._tokenizer = None if found is None else found[0]
        self._vocab_size = base.info.vocab_size
        table = ByteTable(()) if found is None else found[1]
        self.leading_spaces = table.stripped_spaces or int(table.first_piece is not None)
        """Spaces that the tokenizer's decoder removes from the beginning of a text."""

    def compile(self, guide: Guide, lead: str = "") -> CompiledGuide:
        """Compile a checked guide for answers that begin with the text `lead` and then have its form.

        Raises InvalidInput naming the field below `sampling.guide` if the guide has errors, is too complex, uses a
        feature that is not supported, or if no text has its form.
        """
        (kind,) = guide.kinds
        field = f"sampling.guide.{kind}"
        if self._tokenizer is None:
            raise InvalidInput.of("sampling.guide", "is not available: this model's tokens have no bytes of their own")
        try:
            body = _grammar(guide)
        except ValueError as error:
            raise InvalidInput.of(field, _plain(str(error))) from error
        matcher = LLMatcher(self._tokenizer, _with_lead(body, lead), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise InvalidInput.of(field, _plain(matcher.get_error()))
        compiled = CompiledGuide(matcher, self._vocab_size, self._end_id)
        after_lead = compiled.mask_after(self._tokenizer.tokenize_str(lead))
        if after_lead.error:
            raise InvalidInput.of(field, _plain(after_lead.error))
        return compiled


def _plain(error: str) -> str:
    """The library's error for callers, who don't know its parts and options."""
    text = brief(error)
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    return text


def _grammar(guide: Guide) -> dict[str, Any]:
    """The guide as one of llguidance's grammars. Raises ValueError."""
    if guide.grammar is not None:
        return {"lark_grammar": guide.grammar}
    if guide.json_schema is not None:
        schema = json.loads(str(guide.json_schema))
        if schema is True:
            schema = {}
        if schema is False:
            raise ValueError("no value is valid under the schema false")
        own = schema.get("x-guidance", {})
        if not isinstance(own, dict):
            raise ValueError("x-guidance must be an object")
        space = {} if "whitespace_flexible" in own else {"whitespace_pattern": _SPACE_PATTERN}
        return {"json_schema": {**schema, "x-guidance": {**space, **own, "lenient": False}}}
    regex = guide.regex if guide.regex is not None else "|".join(map(_literal, guide.choices))
    return {"lark_grammar": f"start: /{regex_to_lark(regex, 'd')}/"}


def _with_lead(body: dict[str, Any], lead: str) -> str:
    """The grammar of `lead` followed by `body`.

    Without forcing, the model chooses how text that is certain is split into tokens. With it, the library would
    tokenize the rest of that text in Python for every token.
    """
    first = f"{json.dumps(lead)} " if lead else ""
    start = {"lark_grammar": f'%llguidance {{"no_forcing": true}}\nstart: {first}@body'}
    return json.dumps({"grammars": [start, {**body, "name": "body"}]})


def _literal(text: str) -> str:
    """A regular expression that matches only the text."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):X}}}" for char in text)
