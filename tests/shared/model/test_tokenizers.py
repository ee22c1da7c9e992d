"""Tokenizers that a base model can't be used with are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import PreconditionFailed, Unavailable
from shared.model import base_model
from tests.tiny_models import VOCAB_SIZE


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
