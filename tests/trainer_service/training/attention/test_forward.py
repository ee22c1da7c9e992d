"""The packed pass against the plain reference, [prompt; text] one row at a time: logits at targets and the prompts'
gradients.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from shared.errors import PreconditionFailed
from shared.kernels import library
from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from tests.trainer_service.training.models import ARCHITECTURES, build
from tests.trainer_service.training.tasks import task
from trainer_service.training import compute
from trainer_service.training.attention import prefix_attention
from trainer_service.training.attention.forward import PackedForward, PlainForward, choose_forward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.compute import backward
from trainer_service.training.recipe.leaves import PromptLeaves
from trainer_service.training.spec import Init
from trainer_service.training.trainee import Candidate, Trainee
from trainer_service.training.work import ScoreWork, TrainPart


def _trainee(matrix: torch.Tensor) -> Trainee:
    return Trainee(Candidate(0.1, Init()), PromptLeaves({"prompt": matrix}), task().spec.hyperparameters)


def _rows(rng: random.Random, count: int, preamble: int = 0) -> list[Row]:
    shared = [rng.randrange(5, 250) for _ in range(preamble)]
    return [
        Row(
            (*shared, *(rng.randrange(5, 250) for _ in range(rng.randint(2, 18)))),
            tuple(rng.randrange(5, 250) for _ in range(length)),
        )
        for length in (1 + rng.randrange(4) for _ in range(count))
    ]


def _prompts(base: BaseModel, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = base.embedding_table.shape[1]
    return [(torch.randn(length, width, generator=generator) * 0.1).requires_grad_(True) for length in lengths]


def _packed_logits(base: BaseModel, segments: list[Segment]) -> torch.Tensor:
    forward = PackedForward(base)
    return forward.logits(forward.states(segments))


def _one_at_a_time(base: BaseModel, segments: list[Segment]) -> torch.Tensor:
    """Independent of the code under test."""
    embed, found = base.model.get_input_embeddings(), []
    for segment in segments:
        for row in segment.rows:
            text = embed(torch.tensor(row.tokens))
            prompt = None if segment.prefix is None else segment.prefix.embeddings
            embeds = text if prompt is None else torch.cat([prompt, text])
            logits = base.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
            found.append(logits[len(embeds) - len(row.target_ids) :])
    return torch.cat(found)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_packed_logits_and_gradients_equal_one_row_at_a_time(
    architecture: str, compiled: bool, request: pytest.FixtureRequest
) -> None:
    if not compiled:
        request.getfixturevalue("without_kernels")
    elif library.load() is None:
        pytest.skip("no compiled kernels on this machine")
    base, rng = build(architecture), random.Random(0)
    prompts = _prompts(base, 12, 3)
    segments = [
        Segment(PrefixInput(prompts[0]), _rows(rng, 4)),
        Segment(PrefixInput(prompts[1]), _rows(rng, 3, preamble=9)),
        Segment(None, _rows(rng, 2, preamble=3)),
    ]
    results = []
    packed_forward = PackedForward(base)
    for forward in (
        lambda: packed_forward.logits(packed_forward.states(segments)),
        lambda: _one_at_a_time(base, segments),
    ):
        logits = forward()
        weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
        results.append((logits.detach(), *torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), prompts)))
    assert isinstance(choose_forward(base), PackedForward)  # now with faster modules
    logits = packed_forward.logits(packed_forward.states(segments))
    for found in (
        results[0],
        (logits.detach(), *torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), prompts)),
    ):
        for packed, plain in zip(found, results[1], strict=True):
            torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_rows_of_very_different_lengths_lie_in_several_buckets() -> None:
    base, rng = build(), random.Random(3)
    rows = [Row(tuple(rng.randrange(5, 250) for _ in range(length)), (7, 8)) for length in (90, 2, 40, 3, 88)]
    prompt = _prompts(base, 5)[0]
    segments = [Segment(PrefixInput(prompt), rows)]
    torch.testing.assert_close(_packed_logits(base, segments), _one_at_a_time(base, segments), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by PEFT
@pytest.mark.parametrize("forward", [PackedForward, PlainForward])
def test_loss_and_gradient_equal_peft(forward: type[PackedForward] | type[PlainForward]) -> None:
    base, rng = build(), random.Random(2)
    rows, (prompt,) = _rows(rng, 6), _prompts(base, 10)
    losses = backward(base, forward(base), [TrainPart(_trainee(prompt), rows)], token_budget=10_000)
    ours = prompt.grad

    longest = max(len(row.tokens) + 1 for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        whole = (*row.input_ids, *row.target_ids)
        ids[index, : len(whole)] = torch.tensor(whole)
        mask[index, : len(whole)] = 1
        labels[index, len(row.input_ids) : len(whole)] = torch.tensor(row.target_ids)
    model = get_peft_model(base.model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10))
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(prompt)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(losses[0], loss.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours, weight.grad, rtol=1e-4, atol=1e-4 * float(weight.grad.abs().max()))


def test_a_batch_over_the_budget_is_split_with_the_same_gradient() -> None:
    base, rng = build(), random.Random(4)
    rows, (prompt,) = _rows(rng, 8), _prompts(base, 6)
    gradients, losses = [], []
    for budget in (10_000, 40):
        losses.append(backward(base, PackedForward(base), [TrainPart(_trainee(prompt), rows)], budget))
        assert prompt.grad is not None
        gradients.append(prompt.grad)
        prompt.grad = None
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_logits_in_parts_give_the_same_losses_gradients_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    base, rng = build(), random.Random(7)
    rows, (prompt,) = _rows(rng, 6), _prompts(base, 5)
    found = []
    for at_once in (1 << 20, 3 * 261):
        monkeypatch.setattr(compute, "LOGITS_AT_ONCE", at_once)
        prompt.grad = None
        loss = backward(base, PackedForward(base), [TrainPart(_trainee(prompt), rows, 0.1)], 1000)
        scores = compute.score(base, PackedForward(base), [ScoreWork(PrefixInput(prompt.detach()), rows, (7, 9))])
        found.append(
            (loss, prompt.grad, torch.tensor([[s.log_probability, s.num_correct, *s.candidates] for s in scores[0]]))
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_row_weights_and_label_smoothing_follow_their_definitions() -> None:
    base = build()
    (prompt,) = _prompts(base, 4)
    rows = [Row((9, 10), (11,), weight=3.0), Row((12, 13, 14), (15, 16))]
    with torch.no_grad():
        logp = _one_at_a_time(base, [Segment(PrefixInput(prompt), rows)]).log_softmax(-1)
    nll = -logp[range(3), [11, 15, 16]]
    smooth = 0.9 * nll - 0.1 * logp.mean(-1)
    part = TrainPart(_trainee(prompt), rows, label_smoothing=0.1)
    loss = backward(base, PackedForward(base), [part], 1000)[0]
    torch.testing.assert_close(loss, (3 * smooth[0] + smooth[1] + smooth[2]) / 5)


def test_a_nan_prompt_leaves_its_neighbours_rows_and_gradients_alone() -> None:
    base, rng = build(), random.Random(5)
    rows, (prompt,) = _rows(rng, 3), _prompts(base, 5)
    broken = torch.full((7, 64), float("nan"), requires_grad=True)
    alone = backward(base, PackedForward(base), [TrainPart(_trainee(prompt), rows)], 10_000)
    expected, prompt.grad = prompt.grad, None
    parts = [TrainPart(_trainee(broken), _rows(rng, 4)), TrainPart(_trainee(prompt), rows)]
    losses = backward(base, PackedForward(base), parts, 10_000)
    assert torch.isnan(losses[0])
    torch.testing.assert_close(losses[1], alone[0])
    torch.testing.assert_close(prompt.grad, expected)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False}),
        ("phimoe", {"sliding_window": 18, "num_local_experts": 2}),  # longer than the rows of the check
    ],
)
def test_an_architecture_whose_attention_looks_at_more_than_positions_falls_back_to_the_plain_pass(
    kind: str, config: dict[str, Any]
) -> None:
    base = build(kind, **config)
    forward = choose_forward(base)
    assert isinstance(forward, PlainForward)
    assert not any("forward" in vars(module) for module in base.model.modules())
    rng, (prompt,) = random.Random(6), _prompts(base, 4)
    segments = [Segment(PrefixInput(prompt), _rows(rng, 3))]
    torch.testing.assert_close(forward.states(segments), _one_at_a_time(base, segments), rtol=1e-4, atol=1e-5)


def test_a_model_that_passes_no_gradient_to_its_input_is_refused() -> None:
    base = build()
    base.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"].detach()}), with_kwargs=True
    )
    with pytest.raises(PreconditionFailed, match="tiny-llama"):
        choose_forward(base)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_probabilities_that_are_not_kept_are_recomputed_to_the_same_gradient(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, rng = build(architecture), random.Random(8)
    rows, (prompt,) = _rows(rng, 5), _prompts(base, 9)
    gradients: list[torch.Tensor] = []
    for limit in (1 << 20, 0):
        monkeypatch.setattr(prefix_attention, "MAX_KEPT", limit)
        prompt.grad = None
        backward(base, PackedForward(base), [TrainPart(_trainee(prompt), rows)], 1000)
        assert prompt.grad is not None
        gradients.append(prompt.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))
