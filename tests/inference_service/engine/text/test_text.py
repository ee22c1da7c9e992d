"""Detokenizing and stop sequences: no half character, none lost, none shown that belongs to a stop."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inference_service.engine.text.detokenizer import ByteDetokenizer, DetokenizerFactory, WindowDetokenizer
from inference_service.engine.text.text_stream import StopMatcher
from shared.text.token_bytes import ByteTable
from tests.tiny_models import byte_tokenizer

TEXTS = st.text(st.sampled_from("ab é漢🙂\ufffd\u200d👩🏽\n"), max_size=12)
BYTES = byte_tokenizer()


def fallback_tokenizer() -> Any:
    """SentencePiece's way: `▁` for spaces, one token for each byte of what is not in the vocabulary."""
    vocab = {
        "<unk>": 0,
        **{f"<0x{i:02X}>": i + 1 for i in range(256)},
        "▁": 257,
        "a": 258,
        "b": 259,
        "▁a": 260,
        "ab": 261,
    }
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


FALLBACK = fallback_tokenizer()


def test_added_tokens_of_spaces_are_spaces() -> None:
    """Gemma's runs of spaces are added tokens, which its decoder converts as it does all others."""
    tokenizer = fallback_tokenizer()
    tokenizer.add_tokens(["▁▁", "<i>"])
    ids = tokenizer.convert_tokens_to_ids(["a", "▁▁", "b", "<i>"])
    assert DetokenizerFactory(tokenizer)().push(ids) == tokenizer.decode(ids) == "a  b<i>"


def test_byte_level_tokenizers_take_the_exact_way() -> None:
    assert isinstance(DetokenizerFactory(BYTES)(), ByteDetokenizer)
    assert isinstance(DetokenizerFactory(FALLBACK)(), ByteDetokenizer)


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK], ids=["byte-level", "byte-fallback"])
@settings(max_examples=80, deadline=None)
@given(text=TEXTS, data=st.data())
def test_pieces_add_up_to_the_text(tokenizer: Any, text: str, data: st.DataObject) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    subject = DetokenizerFactory(tokenizer)()
    shown = ""
    while ids:
        size = data.draw(st.integers(1, 3))
        shown += subject.push(ids[:size])
        ids = ids[size:]
        assert text.startswith(shown), "half a character was shown"
    assert shown + subject.flush() == text


@settings(max_examples=80, deadline=None)
@given(text=TEXTS.filter(lambda text: "\ufffd" not in text))
def test_the_window_gives_the_same_where_no_table_can(text: str) -> None:
    subject, shown = WindowDetokenizer(BYTES), ""
    for token in BYTES(text, add_special_tokens=False)["input_ids"]:
        shown += subject.push([token])
        assert text.startswith(shown), "half a character was shown"
    assert shown + subject.flush() == text


STRIPPING = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize(
    ("decoder", "text", "exact"),
    [
        (STRIPPING, "  a a", "   a a"),
        (decoders.Metaspace(), " a a", "   a a"),  # without every mark of the first token
        (decoders.Metaspace(prepend_scheme="never"), "   a a", "   a a"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), " aa", " aa"),  # strips each token
    ],
    ids=["strip", "metaspace", "metaspace-never", "strip-each"],
)
def test_a_leading_space_goes_where_the_tokenizer_drops_it(decoder: Any, text: str, exact: str) -> None:
    tokenizer = fallback_tokenizer()
    tokenizer.add_tokens(["▁▁"])
    tokenizer.backend_tokenizer.decoder = decoder
    ids = tokenizer.convert_tokens_to_ids(["▁▁", "▁a", "▁a"])
    make = DetokenizerFactory(tokenizer)
    subject = make()
    assert "".join(subject.push([token]) for token in ids) == tokenizer.decode(ids) == text
    assert make(exact=True).push(ids) == exact


def test_metaspace_keeps_the_spaces_that_are_no_marks() -> None:
    tokenizer = fallback_tokenizer()
    tokenizer.add_tokens(["x▁ y"])
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    ids = tokenizer.convert_tokens_to_ids(["x▁ y", "▁a"])
    assert DetokenizerFactory(tokenizer)().push(ids) == tokenizer.decode(ids) == "x y a"


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK], ids=["byte-level", "byte-fallback"])
def test_a_cut_character_is_not_shown(tokenizer: Any) -> None:
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    subject = DetokenizerFactory(tokenizer)()
    assert subject.push(ids[:-1]) + subject.flush() == "a"


def test_special_tokens_have_no_text() -> None:
    ids = [*BYTES("ab")["input_ids"], BYTES.eos_token_id, *BYTES("c")["input_ids"]]
    assert DetokenizerFactory(BYTES)().push(ids) == "abc"


def test_bytes_that_are_no_character_are_replaced_once_certain() -> None:
    subject = ByteDetokenizer(ByteTable((b"\xff", b"a", b"\xf0\x9f")))
    assert subject.push([0, 1]) == "\ufffda"
    assert subject.push([2]) == ""
    assert subject.push([1]) == "\ufffda"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 3), min_size=20),
)
def test_a_stream_ends_before_its_first_stop(text: str, stops: list[str], sizes: list[int]) -> None:
    subject = StopMatcher(stops)
    shown, at = "", 0
    for size in sizes:
        piece, stopped = subject.push(text[at : at + size])
        shown += piece
        at += size
        assert not any(stop in shown for stop in stops)
        if stopped:
            by_character = next(text[:end] for end in range(at + 1) if text[:end].endswith(tuple(stops)))
            longest = max((stop for stop in stops if by_character.endswith(stop)), key=len)
            assert (shown + longest, subject.found) == (by_character, longest)
            return
    assert not any(stop in text for stop in stops)
    assert shown + subject.flush() == text


def test_text_that_may_become_a_stop_is_held_back() -> None:
    subject = StopMatcher(["END"])
    assert subject.push("so E") == ("so ", False)
    assert subject.push("N") == ("", False)
    assert subject.push("T") == ("ENT", False)


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK], ids=["byte-level", "byte-fallback"])
def test_what_goes_on_from_a_text_keeps_its_leading_space(tokenizer: Any) -> None:
    before, ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("France is", " Paris.")]
    for subject in (DetokenizerFactory(tokenizer)(before), WindowDetokenizer(tokenizer, before)):
        assert "".join(subject.push([token]) for token in ids) + subject.flush() == " Paris."
    stripping = fallback_tokenizer()
    stripping.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    assert DetokenizerFactory(stripping)([260]).push([260]) == " a"
    assert WindowDetokenizer(stripping, [260]).push([260]) == " a"
