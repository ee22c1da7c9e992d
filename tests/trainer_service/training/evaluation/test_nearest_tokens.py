"""The tokens nearest to a prompt's vectors."""

from __future__ import annotations

import pytest
import torch

from shared.prompt.prefix import PrefixInput
from tests.trainer_service.training.models import build
from trainer_service.training.evaluation.evaluate import nearest_tokens


def test_the_nearest_token_of_an_embedding_is_that_token() -> None:
    base = build()
    table = base.embedding_table
    found = nearest_tokens(base, PrefixInput(torch.stack([table[70] * 3, table[80] - table[81] * 0.01])))
    assert [token.text for token in found] == [base.tokenizer.decode([70]), base.tokenizer.decode([80])]
    assert found[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert 0.9 < found[1].cosine < 1.0
