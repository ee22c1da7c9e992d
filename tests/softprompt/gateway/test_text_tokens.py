"""Which tokens an answer's text is made of. Needs no services."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from shared.values.generation import FinishReason, GenerationDelta, GenerationEnd, InputToken, TokenLogprob
from softprompt.gateway.streaming import event
from softprompt.gateway.text_tokens import TextTokens
from tests.copied_text import CopiedText

LENGTH, EOS, STOP = FinishReason.LENGTH, FinishReason.EOS, FinishReason.STOP_SEQUENCE
SMILE = [b"a", b"\xf0\x9f", b"\x98", b"\x80", b"b"]


def placed(
    parts: Sequence[tuple[str, Sequence[bytes]]], reason: FinishReason, echo: Sequence[bytes] = ()
) -> list[tuple[bytes, int]]:
    """Tokens and offsets of deltas of (text, tokens)."""
    tokens = TextTokens([InputToken(0, -1.0, (), "", utf8) for utf8 in echo])
    found = []
    for text, pieces in parts:
        logprobs = tuple(TokenLogprob(0, -1.0, (), "", utf8) for utf8 in pieces)
        found.append(tokens.add(GenerationDelta(text, (), logprobs)))
    found.append(tokens.rest(GenerationEnd(reason, 0, None, None, None, "")))
    return [(one.utf8, place) for part in found for one, place in zip(part.logprobs, part.offsets, strict=True)]


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize(
    ("text", "pieces", "reason", "echo", "offsets"),
    [
        ("a\U0001f600b", SMILE, LENGTH, [], [0, 1, 1, 1, 2]),
        ("a\U0001f600b", [], LENGTH, SMILE, [0, 1, 1, 1, 2]),
        ("a\ufffdb", [b"a", b"\xf0\x9f", b"b"], LENGTH, [], [0, 1, 2]),
        ("a", [b"a", b"\xf0\x9f", b"<end>"], EOS, [], [0, 1]),
        ("\ufffd\ufffdb", [b"\xe5", b"\xf0", b"\x9f", b"b"], LENGTH, [], [0, 1, 1, 2]),
        ("\ufffd\ufffd", [b"\xe5", b"\xf0", b"\x9f", b"\xe5", b"b"], STOP, [], [0, 1, 1]),
        ("ab", [b"ab\xf0", b"\x9f", b"."], STOP, [], [0]),
        ("hi\U0001f600", [b"h", b"i", b"<end>", *SMILE[1:]], STOP, [], [0, 1, 2, 2, 2, 2]),
        ("qaX", [b"<end>", b"a", b"<user>", b"X"], LENGTH, [b"<s>", b"q", b"<user>"], [0, 0, 1, 1, 1, 2, 2]),
        ("qaX", [b"<end>", b"a", b"<user>", b"Xyz", b"."], STOP, [b"<s>", b"q", b"<user>"], [0, 0, 1, 1, 1, 2, 2]),
        ("q\ufffda", [b"a"], LENGTH, [b"q", b"\xf0"], [0, 1, 2]),
        ("hello", [b" ", b" hello", b" wor"], STOP, [], [0, 0]),
        ("<end>", [b"<", b"end>", b"<end>"], EOS, [], [0, 1]),
        ("", [b"<end>"], EOS, [], []),
        ("ab", [], STOP, [], []),
    ],
)
def test_control_tokens_and_parts_of_characters_have_their_place_in_the_text(
    text: str,
    pieces: Sequence[bytes],
    reason: FinishReason,
    echo: Sequence[bytes],
    offsets: Sequence[int],
    is_whole: bool,
) -> None:
    """A streamed text may come long after its tokens, character by character."""
    parts = [(text, pieces)] if is_whole else [("", pieces[:2]), ("", pieces[2:]), *((char, ()) for char in text)]
    found = placed(parts, reason, echo)
    assert [place for _, place in found] == list(offsets)
    assert [utf8 for utf8, _ in found] == [*echo, *pieces][: len(offsets)]


def test_a_long_text_at_once_is_not_copied_for_each_token() -> None:
    length, copied = 1000, [0]
    pieces = (b"<end>", b"a") * length
    tokens = tuple(TokenLogprob(0, -1.0, (), "", utf8) for utf8 in pieces)
    part = TextTokens().add(GenerationDelta(CopiedText.of("a" * length, copied), (), tokens))
    assert part.offsets == tuple(index // 2 for index in range(2 * length))
    assert copied[0] < 20 * length


def test_an_event_is_one_line_for_clients_that_split_at_all_line_ends_of_unicode() -> None:
    data = {"text": "a\u2028b\x85c\u2029d\x0b\x1ce\r\n"}
    (line, empty) = event(data).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), empty) == (data, "")
