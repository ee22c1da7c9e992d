"""Keys and values in a pass: the answers of the embeddings they were computed from, and the plain pass's gradient."""

from __future__ import annotations

import random

import pytest
import torch

from shared.model.base_model import BaseModel
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import PrefixInput
from tests.trainer_service.training.models import ARCHITECTURES, build
from trainer_service.training.attention.forward import Forward, PackedForward, PlainForward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.recipe.leaves import KeyValueLeaves


def _rows(rng: random.Random, lengths: tuple[int, ...], preamble: int) -> list[Row]:
    shared = [rng.randrange(5, 250) for _ in range(preamble)]
    return [
        Row((*shared, *(rng.randrange(5, 250) for _ in range(length))), (rng.randrange(5, 250), rng.randrange(5, 250)))
        for length in lengths
    ]


@pytest.fixture(params=sorted(ARCHITECTURES))
def base(request: pytest.FixtureRequest) -> BaseModel:
    return build(request.param)


def test_lifted_prompts_give_the_prompts_logits_and_both_passes_one_gradient(base: BaseModel) -> None:
    rng, generator = random.Random(3), torch.Generator().manual_seed(1)
    width = base.embedding_table.shape[1]
    prompts = [torch.randn(length, width, generator=generator) * 0.3 for length in (11, 4)]
    rows = [_rows(rng, (3, 9, 14), 5), _rows(rng, (6,), 0), _rows(rng, (2, 5), 3)]
    lifted = [KeyValueLeaves.of(key_values_of(base, prompt), base.device) for prompt in prompts]
    embedded = [Segment(PrefixInput(prompt), some) for prompt, some in zip(prompts, rows[:2], strict=True)]
    expected = _logits(PlainForward(base), [*embedded, Segment(None, rows[2])])
    gradients = []
    for forward in (PlainForward(base), PackedForward(base)):
        # keys and values beside a soft prompt and the bare model
        segments = [
            Segment(lifted[0].input(base.dtype), rows[0]),
            embedded[1],
            Segment(None, rows[2]),
            Segment(lifted[1].input(base.dtype), rows[1]),
        ]
        logits = _logits(forward, segments)
        second = logits[-len(rows[1]) * 2 :]
        torch.testing.assert_close(logits[: len(expected)], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(second, expected[len(rows[0]) * 2 :][: len(second)], rtol=1e-3, atol=1e-4)
        trained = [leaves.parameters["others"] for leaves in lifted]
        gradients.append(torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), trained))
    for ours, reference in zip(gradients[1], gradients[0], strict=True):
        assert float(reference.norm()) > 0
        assert float((ours - reference).norm() / reference.norm()) < 1e-3


def test_a_prefix_may_have_keys_and_values_before_its_embeddings(base: BaseModel) -> None:
    prompt = torch.randn(9, base.embedding_table.shape[1], generator=torch.Generator().manual_seed(2)) * 0.3
    rows = _rows(random.Random(5), (3, 8), 4)
    expected = _logits(PlainForward(base), [Segment(PrefixInput(prompt), rows)])
    lifted = key_values_of(base, prompt[:4]).input(base.dtype)
    mixed = PrefixInput(prompt[4:], lifted.keys, lifted.values)
    assert (mixed.num_given, mixed.num_embedded, mixed.num_virtual_tokens) == (4, 5, 9)
    for forward in (PlainForward(base), PackedForward(base)):
        torch.testing.assert_close(_logits(forward, [Segment(mixed, rows)]), expected, rtol=1e-3, atol=1e-4)


def test_leaves_become_the_prefix_that_they_began_as(base: BaseModel) -> None:
    prefix = key_values_of(base, torch.randn(6, base.embedding_table.shape[1]))
    leaves = KeyValueLeaves.of(prefix, base.device)
    assert leaves.num_virtual_tokens == 6
    assert leaves.prefix().equals(prefix.rounded())
    assert [name for name, one in leaves.parameters.items() if one.requires_grad] == ["others"]
    with torch.no_grad():
        leaves.parameters["others"].add_(1)
    width = prefix.values[-1][0].numel()
    unit = leaves.parameters["scale"][0, -width:].view(prefix.values[-1][0].shape)
    trained = leaves.prefix()
    assert torch.equal(trained.keys[0][0], prefix.rounded().keys[0][0]), "the attention sink stays"
    assert torch.equal(trained.values[-1][1:], ((prefix.values[-1][1:] / unit + 1) * unit).bfloat16().float())


def _logits(forward: Forward, segments: list[Segment]) -> torch.Tensor:
    assert segments[0].prefix is not None
    return forward.logits(forward.states(segments)).float()
