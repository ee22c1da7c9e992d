"""The divergence from the teacher's kept tokens, compared with a plain computation over the vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import task
from trainer_service.training.attention.forward import PlainForward, choose_forward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.compute import backward, score
from trainer_service.training.recipe.leaves import new_leaves
from trainer_service.training.spec import Init, InitMethod
from trainer_service.training.teacher_targets import TOP, top_divergence, top_targets
from trainer_service.training.trainee import Candidate, Trainee
from trainer_service.training.work import ScoreWork, TrainPart

BASE = build()


def _plain(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    """With Python numbers: the kept tokens, and all others as one outcome."""
    found = []
    for q_logits, p_logits in zip(student.double(), teacher.double(), strict=True):
        q, p = q_logits.softmax(-1).tolist(), p_logits.softmax(-1).tolist()
        kept = sorted(range(len(p)), key=lambda token: -p[token])[:TOP]
        pairs = [(p[token], q[token]) for token in kept]
        pairs.append((1 - sum(one for one, _ in pairs), 1 - sum(other for _, other in pairs)))
        found.append(sum(one * math.log(one / other) for one, other in pairs if one > 1e-12))
    return found


@pytest.mark.parametrize("vocab", [20, 21, 300])
@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_the_divergence_equals_the_plain_formula_and_is_below_that_of_the_whole_vocabulary(
    vocab: int, sharpness: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (sharpness * torch.randn(5, vocab, generator=generator) for _ in range(2))
    kept = top_targets(teacher)
    ids, logs = torch.from_numpy(kept.ids).long(), torch.from_numpy(kept.log_probabilities)
    found = top_divergence(student, ids, logs)
    assert found.tolist() == pytest.approx(_plain(student, teacher), rel=1e-4, abs=1e-5)
    whole = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert (found <= whole + 1e-5).all()
    assert top_divergence(teacher, ids, logs).tolist() == pytest.approx([0.0] * 5, abs=1e-5)


def test_a_teacher_that_is_certain_gives_finite_gradients() -> None:
    teacher = torch.zeros(1, 50)
    teacher[0, 7] = 1000.0
    kept = top_targets(teacher)
    student = torch.zeros(1, 50, requires_grad=True)
    loss = top_divergence(student, torch.from_numpy(kept.ids).long(), torch.from_numpy(kept.log_probabilities))
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(50), rel=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def _rows() -> list[Row]:
    """Two rows with a teacher, whose distributions are those of the bare model with more before, and one without."""
    inputs, targets = ((5, 6, 7), (8, 9)), ((10, 11, 12), (13, 14))
    longer = [Row((40, 41, 42, *row), target) for row, target in zip(inputs, targets, strict=True)]
    forward = choose_forward(BASE)
    [kept] = score(BASE, forward, [ScoreWork(None, longer, keep_top=True)])
    rows = [Row(row, target, teacher=one.top) for row, target, one in zip(inputs, targets, kept, strict=True)]
    return [rows[0], Row((3, 4), (15, 16)), rows[1]]


def test_a_step_mixes_rows_with_and_without_a_teacher_and_has_the_gradient_of_the_plain_formula() -> None:
    rows, hyper = _rows(), task().spec.hyperparameters
    init = Init(InitMethod.TEXT, "abcdef")
    trainee = Trainee(Candidate(0.1, init), new_leaves(BASE, init, hyper, torch.Generator().manual_seed(0)), hyper)
    forward = choose_forward(BASE)
    for budget in (1 << 20, 16):
        trainee.discard_gradients()
        [loss] = backward(BASE, forward, [TrainPart(trainee, rows)], budget).tolist()
        [(_, parameter)] = trainee.parameters.items()
        assert parameter.grad is not None
        gradient = parameter.grad.clone()

        parameter.grad = None
        plain = PlainForward(BASE)
        total, terms = sum(len(row.target_ids) for row in rows), list[torch.Tensor]()
        for row in rows:
            logits = plain.logits(plain.states([Segment(trainee.input(torch.float32), [row])]))
            if row.teacher is None:
                terms.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.target_ids), reduction="sum"))
                continue
            q = logits.softmax(-1)
            for place, (ids, logs) in enumerate(zip(row.teacher.ids, row.teacher.log_probabilities, strict=True)):
                p, own = torch.tensor(logs).exp(), q[place, torch.tensor(ids).long()]
                rest, other = 1 - p.sum(), 1 - own.sum()
                terms.append((p * (p / own).log()).sum() + rest * (rest / other).log())
        expected = torch.stack(terms).sum() / total
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_scored_row_with_a_teacher_has_the_divergence_and_the_agreement() -> None:
    rows = _rows()
    forward = choose_forward(BASE)
    [scores] = score(BASE, forward, [ScoreWork(None, rows)])
    plain = PlainForward(BASE)
    for row, found in zip(rows, scores, strict=True):
        logits = plain.logits(plain.states([Segment(None, [row])]))
        agreed = (logits.argmax(-1) == torch.tensor(row.target_ids)).sum().item()
        assert found.num_correct == agreed
        if row.teacher is not None:
            ids, logs = torch.from_numpy(row.teacher.ids).long(), torch.from_numpy(row.teacher.log_probabilities)
            assert -found.log_probability == pytest.approx(top_divergence(logits, ids, logs).sum().item(), rel=1e-3)
