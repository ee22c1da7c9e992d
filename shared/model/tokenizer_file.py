"""Whether transformers' tokenizer of a model is the one of the model's tokenizer.json, and the one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SAMPLE = "It's 12345 words,  two\n\n\tÜBER \uff46\uff55ll \u4e2d\u6587 1.5x _id = foo(7)!? \U0001f600 e\u0301"
"""Text on which rules of tokenizers differ: digits, case, spaces, contractions, scripts and forms of Unicode."""


def load_from_file(path: Path, special_tokens: dict[str, str]) -> Any:
    """The tokenizer of a directory's tokenizer.json, without rules of a class.

    `special_tokens`: the class's, such as `{"eos_token": "</s>"}`. They count if the vocabulary has them and
    tokenizer_config.json names no other. Raises what transformers raises.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    named, id_of = tokenizer.special_tokens_map, tokenizer.backend_tokenizer.token_to_id
    defaults = {name: token for name, token in special_tokens.items() if name not in named}
    tokenizer.add_special_tokens({name: token for name, token in defaults.items() if id_of(token) is not None})
    return tokenizer


def follows_file(tokenizer: Any, path: Path) -> bool:
    """Whether a tokenizer divides a text as the tokenizer.json of its directory says. True if there is none, and for a
    tokenizer in Python, which has its own rules.

    transformers builds tokenizers of some classes anew from the file's vocabulary, and loses its rules: SmolLM2's, of
    the class GPT2Tokenizer, then no longer divides numbers into digits.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file() or not getattr(tokenizer, "is_fast", False):
        return True
    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    added = tokenizer.added_tokens_decoder.values()  # also those of other files
    own.add_tokens([token for token in added if own.token_to_id(token.content) is None])
    ids: list[int] = own.encode(_SAMPLE, add_special_tokens=False).ids
    return ids == list(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"])
