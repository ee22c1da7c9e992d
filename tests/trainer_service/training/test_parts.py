"""The small parts: schedules and AdamW, fair share, batches, metrics, buckets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.model.base_model import BaseModel
from shared.prompt.prefix import VirtualTokens
from tests.host_waits import HostWaits
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import task
from trainer_service.training import precision
from trainer_service.training.attention.forward import PackedForward
from trainer_service.training.attention.packing import (
    PADDING_RATIO,
    PADDING_SLACK,
    Row,
    Segment,
    num_packed_tokens,
    pack,
)
from trainer_service.training.compute import backward
from trainer_service.training.evaluation.evaluate import nearest_tokens
from trainer_service.training.fair_share import FairShare
from trainer_service.training.recipe.leaves import PromptLeaves
from trainer_service.training.recipe.optimise import AdamW, learning_rate_at
from trainer_service.training.results import classification_metrics
from trainer_service.training.spec import Init, LearningRateSchedule
from trainer_service.training.trainee import Candidate, Trainee, batch_indices
from trainer_service.training.work import TrainPart


@pytest.mark.parametrize("schedule", LearningRateSchedule)
def test_a_schedule_warms_up_to_its_peak_and_never_exceeds_it(schedule: LearningRateSchedule) -> None:
    hyperparameters = task(num_steps=100, warmup_steps=10, schedule=schedule).spec.hyperparameters
    rates = [learning_rate_at(step, 0.5, hyperparameters) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.5 if schedule is LearningRateSchedule.CONSTANT else 0.0, abs=1e-12)


def test_adamw_with_clipping_equals_torch() -> None:
    start = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone().requires_grad_(True), start.clone().requires_grad_(True)
    optimizer, reference = AdamW({"prompt": ours}, 0.1), torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    for step in range(12):
        gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(step + 1)) * (step + 0.1)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        norm = optimizer.clip(1.0)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([theirs], 1.0))
        optimizer.update(0.02)
        reference.step()
    torch.testing.assert_close(ours, theirs)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 1000))
def test_batches_go_through_every_example_once_an_epoch(num_examples: int, batch_size: int, seed: int) -> None:
    steps = -(-2 * num_examples // batch_size)
    picks = [pick for step in range(steps) for pick in batch_indices(seed, step, num_examples, batch_size)]
    assert sorted(picks[:num_examples]) == list(range(num_examples))
    assert sorted(picks[num_examples : 2 * num_examples]) == list(range(num_examples))


def test_shares_follow_weights_and_a_newcomer_starts_at_once() -> None:
    shares = FairShare[str]()
    shares.join("plain", 0)
    shares.join("urgent", 2)
    counts = {"plain": 0, "urgent": 0, "late": 0}
    for step in range(120):
        if step == 100:
            shares.join("late", 0)
        for run in shares.choose({run: 10 for run in counts if run in shares}, 10):
            counts[run] += 1
    assert counts["urgent"] == pytest.approx(4 * counts["plain"], rel=0.1)
    assert counts["late"] >= 2


def test_tenants_share_a_step_by_weight_before_their_runs_do_by_priority() -> None:
    """A tenant with one run of no priority beside one of twice its weight with six urgent ones."""
    shares = FairShare[str]()
    shares.join("alone", 0, "small", 1.0)
    for number in range(6):
        shares.join(f"urgent-{number}", 8, "large", 2.0)
    counts = dict.fromkeys(["alone", *(f"urgent-{number}" for number in range(6))], 0)
    for _ in range(300):
        for run in shares.choose(dict.fromkeys(counts, 10), 10):
            counts[run] += 1
    assert counts["alone"] == pytest.approx(100, abs=2)
    shares.leave("alone")
    assert len(shares) == 6
    shares.join("back", 0, "small", 1.0)
    chosen = [shares.choose({"back": 10, "urgent-0": 10}, 10)[0] for _ in range(30)]
    assert chosen.count("back") == pytest.approx(10, abs=1), "it takes back nothing that it missed"


def test_a_run_larger_than_the_budget_still_gets_its_turn() -> None:
    shares = FairShare[str]()
    shares.join("large", 0)
    shares.join("small", 0)
    chosen = [tuple(shares.choose({"large": 1000, "small": 10}, 100)) for _ in range(102)]
    assert chosen[0] == ("large",)
    assert sum("large" in some for some in chosen) == 2
    assert sum("small" in some for some in chosen) == 100


def test_f1_counts_only_labels_that_occur() -> None:
    metrics = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], num_labels=5)
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=30), st.integers(0, 9))
def test_packing_places_every_token_once(shapes: list[tuple[int, int]], preamble: int) -> None:
    rows = [
        Row((*range(5, 5 + preamble), *((100 + i + j) % 250 for j in range(n))), (7,) * t)
        for i, (n, t) in enumerate(shapes)
    ]
    packed = pack([Segment(VirtualTokens(torch.zeros(3, 2)), rows), Segment(None, rows[:1])], torch.device("cpu"))
    expected = num_packed_tokens(3, rows) + num_packed_tokens(0, rows[:1])
    assert packed.layout.num_tokens == expected
    placed = torch.cat([tile.index.flatten() for tile in packed.layout.tiles])
    assert sorted(placed[placed < expected].tolist()) == list(range(expected))
    for tile in packed.layout.tiles:
        filled = (tile.index < expected).sum(-1)
        similar = (
            int(filled.min()) * PADDING_RATIO + PADDING_SLACK
        )  # rows of a segment are; then whole segments, once more
        assert int(filled.max()) == tile.longest <= similar * PADDING_RATIO + PADDING_SLACK
    assert [len(row.input_ids) - 1 + 3 for row in rows] == _first_target_positions(
        packed.layout.positions, packed.target_positions, rows
    )


def _first_target_positions(positions: torch.Tensor, targets: torch.Tensor, rows: list[Row]) -> list[int]:
    found, first = [], 0
    for row in rows:
        found.append(int(positions[targets[first]]))
        first += len(row.target_ids)
    return found


def test_training_precision_is_what_was_asked_for_else_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    seconds = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(precision, "_product_seconds", lambda *dtypes: [seconds[dtype] for dtype in dtypes])
    assert precision.pick_training_dtype("bfloat16", cpu) == "bfloat16"
    for has_bfloat16, chosen in ((True, "auto"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert precision.pick_training_dtype("auto", torch.device("cuda")) == chosen
    assert precision.pick_training_dtype("auto", cpu) == "float32"
    seconds[torch.bfloat16] = 0.95
    assert precision.pick_training_dtype("auto", cpu) == "float32", "a little faster is not worth its rounding"
    seconds[torch.bfloat16] = 0.2
    assert precision.pick_training_dtype("auto", cpu) == "bfloat16"


def test_the_nearest_token_of_an_embedding_is_that_token() -> None:
    base = build()
    table = base.embedding_table
    found = nearest_tokens(base, VirtualTokens(torch.stack([table[70] * 3, table[80] - table[81] * 0.01])))
    assert [token.text for token in found] == [base.tokenizer.decode([70]), base.tokenizer.decode([80])]
    assert found[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert 0.9 < found[1].cosine < 1.0


def test_a_training_step_never_waits_for_the_device_before_its_results() -> None:
    base = build()
    rows = [Row((5, 6, 7, 8), (9, 10)), Row((5, 6, 11), (12,)), Row((40, 41, 42, 43, 44, 45, 46), (12, 13, 14))]
    trainees = [_trainee(base, 3), _trainee(base, 6)]
    forward = PackedForward(base)
    backward(base, forward, [TrainPart(trainee, rows) for trainee in trainees], 1 << 20)
    with HostWaits() as waits:
        backward(base, forward, [TrainPart(trainee, rows) for trainee in trainees], 1 << 20)
        for trainee in trainees:
            trainee.clip()
            trainee.update()
    assert not waits.found, waits.found


def _trainee(base: BaseModel, num_virtual_tokens: int) -> Trainee:
    parameters = {"prompt": base.embedding_table[:num_virtual_tokens].detach().clone().requires_grad_(True)}
    return Trainee(Candidate(0.1, Init()), PromptLeaves(parameters), task().spec.hyperparameters)
