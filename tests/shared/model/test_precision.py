"""A model computed in another dtype than it is held in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.kernels.replace_modules import speed_up_training
from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.model.precision import computed_in


@pytest.mark.parametrize("speedy", [False, True])
def test_it_is_what_the_model_computes_with_converted_weights(tiny_model_dir: Any, speedy: bool) -> None:
    base = load(tiny_model_dir, ModelOptions(dtype="bfloat16", device="cpu"))
    before = {name: (value.data_ptr(), value.clone()) for name, value in base.model.state_dict().items()}
    replaced = speed_up_training(base.model, base.device) if speedy else []
    inputs = torch.randn(1, 9, base.info.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), computed_in(base.model, torch.float32):
        found = base.model(inputs_embeds=inputs).logits
    assert found.dtype == torch.float32
    assert all("forward" in vars(module) for module in replaced), "what was faster is faster again"
    after = base.model.state_dict()
    assert {name: value.data_ptr() for name, value in after.items()} == {
        name: pointer for name, (pointer, _) in before.items()
    }
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())

    exact = load(tiny_model_dir, ModelOptions(dtype="bfloat16", device="cpu")).model.float()
    with torch.no_grad():
        torch.testing.assert_close(found, exact(inputs_embeds=inputs).logits, atol=1e-5, rtol=1e-5)


def test_weights_come_back_when_the_model_raises(tiny_model_dir: Any) -> None:
    base = load(tiny_model_dir, ModelOptions(dtype="bfloat16", device="cpu"))
    with pytest.raises(RuntimeError), torch.no_grad(), computed_in(base.model, torch.float32):
        base.model(inputs_embeds=torch.zeros(1, 3, base.info.hidden_size + 1))
    assert {value.dtype for value in base.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        base.model(inputs_embeds=torch.zeros(1, 3, base.info.hidden_size, dtype=torch.bfloat16))
