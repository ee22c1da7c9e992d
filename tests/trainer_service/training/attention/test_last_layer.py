"""The last layer's MLP runs for target positions only, and is itself again afterwards."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tests.trainer_service.training.models import ARCHITECTURES, build
from trainer_service.training.attention.forward import last_mlp, only_at

POSITIONS = torch.tensor([5, 2])
WITHOUT = {"opt"}
"""They name their linear layers otherwise."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_read_stays_the_same(architecture: str) -> None:
    base = build(architecture)
    mlp = last_mlp(base.model)
    assert (mlp is None) == (architecture in WITHOUT)
    embeds = base.model.get_input_embeddings()(torch.tensor([[5, 9, 40, 7, 11, 3, 8]])).detach().requires_grad_(True)
    expected = base.model.base_model(inputs_embeds=embeds).last_hidden_state[0, POSITIONS]
    gradient = torch.autograd.grad(expected.sin().sum(), embeds)[0]
    with only_at(POSITIONS, mlp):
        found = base.model.base_model(inputs_embeds=embeds).last_hidden_state[0]
    torch.testing.assert_close(found[POSITIONS], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found[POSITIONS].sin().sum(), embeds)[0], gradient, rtol=1e-3, atol=1e-5
    )


def test_other_positions_cost_nothing_and_the_module_is_restored() -> None:
    mlp, seen = torch.nn.Linear(8, 8), list[torch.Size]()
    inner = mlp.forward

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return inner(hidden)

    mlp.forward = watched  # type: ignore[method-assign, assignment]
    with only_at(POSITIONS, mlp):
        found = mlp(torch.ones(1, 7, 8))
    assert not found[0, [0, 1, 3, 4, 6]].any()
    assert found[0, POSITIONS].any()
    assert seen == [torch.Size([1, 2, 8])]
    assert mlp.forward is watched
    fresh = torch.nn.Linear(8, 8)
    with contextlib.suppress(RuntimeError), only_at(POSITIONS, fresh):
        fresh(torch.ones(1, 7, 9))
    assert "forward" not in vars(fresh)
