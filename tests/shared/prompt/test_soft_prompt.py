"""A soft prompt is a finite float32 matrix within bounds, before a cast and after it."""

from __future__ import annotations

import pytest
import torch

from shared.errors import DamagedBlob
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.base_model import MAX_HIDDEN_SIZE
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS


def test_its_shape() -> None:
    prompt = SoftPrompt(torch.zeros(3, 5))
    assert (prompt.num_virtual_tokens, prompt.hidden_size) == (3, 5)


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (torch.zeros(3), "matrix"),
        (torch.zeros(1, 3, 5), "matrix"),
        (torch.zeros(0, 5), "0 virtual tokens"),
        (torch.zeros(3, 0), "hidden size 0"),
        (torch.zeros(MAX_VIRTUAL_TOKENS + 1, 1), "1025 virtual tokens"),
        (torch.zeros(1, MAX_HIDDEN_SIZE + 1), "hidden size 65537"),
        (torch.zeros(3, 5, dtype=torch.bfloat16), "float32"),
        (torch.zeros(3, 5, dtype=torch.float64), "float32"),
        (torch.tensor([[0.0, float("nan")]]), "finite"),
        (torch.tensor([[0.0, float("-inf")]]), "finite"),
    ],
)
def test_matrices_that_are_none(matrix: torch.Tensor, why: str) -> None:
    with pytest.raises(DamagedBlob, match=why):
        SoftPrompt(matrix)


def test_a_cast_that_overflows_is_refused() -> None:
    prompt = SoftPrompt(torch.tensor([[1.0, 1e30]]))
    assert torch.equal(prompt.cast(torch.bfloat16), torch.tensor([[1.0, 1e30]], dtype=torch.bfloat16))
    with pytest.raises(DamagedBlob, match="overflows"):
        prompt.cast(torch.float16)
    with pytest.raises(DamagedBlob, match="overflows"):
        SoftPrompt(torch.tensor([[3.4e38]])).cast(torch.bfloat16)
