"""Whether transformers' tokenizer of a model is the one of the model's tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SAMPLE = "It's 12345 words,  two\n\n\tÜBER \uff46\uff55ll \u4e2d\u6587 1.5x _id = foo(7)!? \U0001f600 e\u0301"
"""Text on which rules of tokenizers differ: digits, case, spaces, contractions, scripts and forms of Unicode."""


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
    ids: list[int] = own.encode(_SAMPLE, add_special_tokens=False).ids
    return ids == list(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"])
