"""What tokens say, by tokenizers of each kind."""

from __future__ import annotations

from inference_service.token_texts import TokenTexts
from tests.tiny_models import byte_tokenizer


def test_a_part_of_a_character_has_its_bytes_and_a_stand_in_as_text() -> None:
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    ids = tokenizer("aä", add_special_tokens=False)["input_ids"]
    assert [texts.bytes_of(id) for id in ids] == [b"a", b"\xc3", b"\xa4"]
    assert [texts.text_of(id) for id in ids] == ["a", "\ufffd", "\ufffd"]


def test_a_control_token_says_its_string() -> None:
    tokenizer = byte_tokenizer()
    assert TokenTexts(tokenizer).text_of(tokenizer.eos_token_id) == tokenizer.eos_token


def test_an_id_beyond_the_tokenizer_says_nothing() -> None:
    tokenizer = byte_tokenizer()
    assert TokenTexts(tokenizer).bytes_of(len(tokenizer) + 100) == b""
