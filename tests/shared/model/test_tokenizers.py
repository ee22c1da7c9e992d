"""Tokenizers that a base model can't be used with are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PreconditionFailed, Unavailable
from shared.model import base_model
from shared.model.tokenizer_file import follows_file
from tests.tiny_models import CHAT_TEMPLATE, VOCAB_SIZE


@pytest.mark.parametrize(
    ("content", "why"), [(None, "is missing"), (b"{", "can't be loaded here"), (b"[]", "can't be loaded here")]
)
def test_a_model_without_a_tokenizer_is_refused_by_name_before_its_weights_are_read(
    model_dir: Path, content: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "load_weights", None)
    for file in model_dir.glob("token*"):
        file.unlink()
    if content is not None:
        (model_dir / "tokenizer.json").write_bytes(content)
    with pytest.raises(Unavailable, match=f"the tokenizer of base model '{model_dir.name.lower()}' {why}"):
        base_model.load(model_dir)


@pytest.mark.parametrize("name", ["eos_token", "bos_token"])
def test_a_tokenizer_that_writes_tokens_without_embeddings_is_refused(name: str, model_dir: Path) -> None:
    """transformers gives a token that the vocabulary lacks the next free id, which the model doesn't know."""
    path = model_dir / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: "</s>"}))
    if name == "bos_token":
        tokens = json.loads((model_dir / "tokenizer.json").read_text())
        added = {"id": VOCAB_SIZE, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False}
        tokens["added_tokens"].append({**added, "normalized": False, "special": True})
        tokens["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [VOCAB_SIZE], "tokens": ["</s>"]}},
        }
        (model_dir / "tokenizer.json").write_text(json.dumps(tokens))
    why = f"writes '</s>' with the id {VOCAB_SIZE}, but the model has {VOCAB_SIZE} tokens: .* copy both from one place"
    with pytest.raises(PreconditionFailed, match=why):
        base_model.load(model_dir)


def test_the_code_of_a_tokenizer_is_never_run(model_dir: Path) -> None:
    path = model_dir / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (model_dir / "own.py").write_text("raise SystemExit")
    with pytest.raises(PreconditionFailed, match="the tokenizer of base model"):
        base_model.load_tokenizer(model_dir)


def _divide_numbers(model_dir: Path, **config: Any) -> None:
    """Give a model's tokenizer.json a token "12" that its rules never write, and its tokenizer_config.json entries."""
    path, file = model_dir / "tokenizer_config.json", model_dir / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    content = json.loads(file.read_text())
    content["model"]["vocab"]["12"], content["model"]["merges"] = VOCAB_SIZE, [["1", "2"]]
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast"])
def test_the_rules_of_tokenizer_json_hold_whatever_class_is_named(kind: str, model_dir: Path) -> None:
    """SmolLM2 names GPT2Tokenizer, and transformers replaces the file's rules by GPT-2's."""
    _divide_numbers(model_dir, tokenizer_class=kind)
    tokenizer = base_model.load_tokenizer(model_dir)
    assert tokenizer.tokenize("a 12<end>") == ["a", "Ġ", "1", "2", "<end>"]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<end>", 0)
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("end", ["<|endoftext|>", "<end>"])
def test_special_tokens_that_only_the_class_names_are_kept_if_the_vocabulary_has_them(
    end: str, model_dir: Path
) -> None:
    _divide_numbers(model_dir, tokenizer_class="GPT2Tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = model_dir / name
        content = json.loads(path.read_text().replace("<end>", end))
        content.pop("eos_token", None)
        path.write_text(json.dumps(content))
    tokenizer = base_model.load_tokenizer(model_dir, VOCAB_SIZE)
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert tokenizer.eos_token_id == (1 if end == "<|endoftext|>" else None)
    assert len(tokenizer) == VOCAB_SIZE + 1


def test_a_tokenizer_that_no_class_divides_as_its_file_says_is_refused(model_dir: Path) -> None:
    _divide_numbers(model_dir, tokenizer_class="GPT2Tokenizer", eos_token="12")
    with pytest.raises(PreconditionFailed, match=r"other tokens than its tokenizer.json .* copy both from one place"):
        base_model.load_tokenizer(model_dir)


def test_a_tokenizer_that_does_not_say_whether_it_is_fast_has_its_own_rules(model_dir: Path) -> None:
    assert follows_file(object(), model_dir)


def test_tokens_that_are_added_beside_the_file_are_no_other_rules(model_dir: Path) -> None:
    _divide_numbers(model_dir, tokenizer_class="GPT2Tokenizer")
    (model_dir / "added_tokens.json").write_text(json.dumps({"\n\n": VOCAB_SIZE + 1}))
    tokenizer = base_model.load_tokenizer(model_dir)
    assert tokenizer.tokenize("12\n\n") == ["1", "2", "\n\n"]
