"""The initial soft prompt: embeddings of a text, of labels or of sampled tokens, random numbers, or another version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from shared.errors import InvalidInput, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from trainer_service.training.spec import Init, InitMethod

NUM_FREQUENT = 5000


def embed(base_model: BaseModel, token_ids: Sequence[int]) -> torch.Tensor:
    """The model's input embeddings of these ids, `[tokens, hidden_size]` float32, scaled if the model scales them."""
    with torch.no_grad():
        ids = torch.tensor(list(token_ids), device=base_model.device)
        rows: torch.Tensor = base_model.model.get_input_embeddings()(ids)
    return rows.detach().float()


def embedding_std(base_model: BaseModel) -> float:
    """Standard deviation of the embedding table, estimated from evenly spaced rows."""
    vocab = base_model.embedding_table.shape[0]
    return float(embed(base_model, range(0, vocab, max(1, vocab // 2048))).std())


def initial_matrix(
    base_model: BaseModel,
    init: Init,
    num_virtual_tokens: int,
    generator: torch.Generator,
    labels: Sequence[str],
    source: Prefix | None,
    texts: Iterable[Sequence[int]],
) -> torch.Tensor:
    """The initial matrix, `[num_virtual_tokens, hidden_size]`, float32, on the model's device.

    `texts`: token ids of the training data, whose frequent tokens SAMPLE_VOCAB uses; of DEMONSTRATIONS, the one text
    that it starts from. Raises InvalidInput for an init
    text without tokens, PreconditionFailed if `source` is missing or has another shape.
    """
    tokenizer = base_model.tokenizer
    if init.method is InitMethod.FROM_PROMPT:
        return _from_prompt(base_model, source, num_virtual_tokens)
    if init.method is InitMethod.RANDOM:
        shape = (num_virtual_tokens, base_model.embedding_table.shape[1])
        return (torch.randn(shape, generator=generator) * embedding_std(base_model)).to(base_model.device)
    if init.method is InitMethod.SAMPLE_VOCAB:
        frequent = _frequent_tokens(base_model, texts)
        picks = torch.randint(0, len(frequent), (num_virtual_tokens,), generator=generator).tolist()
        return embed(base_model, [frequent[pick] for pick in picks])
    if init.method is InitMethod.DEMONSTRATIONS:
        return embed(base_model, next(iter(texts)))
    wanted = [init.text] if init.method is InitMethod.TEXT else [" " + label for label in labels]
    found = [token for text in wanted for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = [token for token in found if token < base_model.info.vocab_size]  # a tokenizer may have more than the model
    if not ids:
        raise InvalidInput.of("spec.hyperparameters.init.text", "has no tokens in this model's vocabulary")
    return embed(base_model, [ids[index % len(ids)] for index in range(num_virtual_tokens)])


def _from_prompt(base_model: BaseModel, source: Prefix | None, num_virtual_tokens: int) -> torch.Tensor:
    if source is None:
        raise PreconditionFailed("FROM_PROMPT: the version to start from is missing")
    if not isinstance(source, SoftPrompt):
        raise PreconditionFailed("FROM_PROMPT: a soft prompt can't start from a version of keys and values")
    matrix = source.cast(torch.float32, base_model.device)
    shape = [num_virtual_tokens, base_model.embedding_table.shape[1]]
    if list(matrix.shape) != shape:
        raise PreconditionFailed(f"the version to start from is {list(matrix.shape)}; this job trains {shape}")
    return matrix


def _frequent_tokens(base_model: BaseModel, texts: Iterable[Sequence[int]]) -> list[int]:
    """The most frequent tokens of the training data.

    With too little data, the first ids of the vocabulary, because merges are ordered by frequency.
    """
    special: set[Any] = set(base_model.tokenizer.all_special_ids)
    counts = Counter(token for ids in texts for token in ids if token not in special)
    frequent = [token for token, _ in counts.most_common(NUM_FREQUENT)]
    if len(frequent) >= 50:
        return frequent
    return [token for token in range(min(NUM_FREQUENT, base_model.embedding_table.shape[0])) if token not in special]
