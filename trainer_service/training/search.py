"""A search over learning rates and inits in one run, by successive halving of training losses.

All candidates train in the same steps of the same cohort, on the same batches in the same order. So the means of their
training losses over some steps can be compared, without scoring held-out examples. The candidates with the highest
means are dropped early (successive halving: Jamieson and Talwalkar 2016, arXiv:1502.07943; by loss trajectories: ALTO,
arXiv:2604.05426), and the last one trains to the end. Six candidates cost 1.28 times the work of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer_service.training.checkpoint import TriedCandidate
from trainer_service.training.spec import Init, InitMethod, TrainingSpec
from trainer_service.training.trainee import Candidate

RATE_FACTORS = (0.4, 1.0, 3.0)
NUM_PARTS = 32
RUNGS = {1: 3, 2: 2, 4: 1}
"""Candidates kept after this many 32nds of the steps: (6 + 3 + 2 * 2 + 28) / 32 is the work of a search."""


def candidates(spec: TrainingSpec) -> list[Candidate]:
    """The candidates of a run, the spec's own first; without a search it is the only one."""
    hyper = spec.hyperparameters
    own = Candidate(hyper.learning_rate, hyper.init)
    if not hyper.search:
        return [own]
    inits = [hyper.init]
    if hyper.init.method is not InitMethod.FROM_PROMPT:
        inits.append(Init(method=InitMethod.LABELS if spec.labels else InitMethod.SAMPLE_VOCAB))
    crossed = [Candidate(hyper.learning_rate * factor, init) for init in inits for factor in RATE_FACTORS]
    return [own, *[candidate for candidate in crossed if candidate != own]]


def num_kept(step: int, num_steps: int) -> int | None:
    """The number of candidates to keep after `step` steps; None if they are not compared then."""
    kept = [number for part, number in RUNGS.items() if _step(part, num_steps) == step]
    return min(kept, default=None)


def last_comparison(num_steps: int) -> int:
    """The step after which one candidate is left."""
    return _step(max(RUNGS), num_steps)


def ranked(tried: Sequence[TriedCandidate]) -> list[int]:
    """Indices of the candidates, lowest mean loss first. One that skipped more steps has losses of fewer batches, which
    can't be compared, and comes last.
    """
    return sorted(range(len(tried)), key=lambda index: (-tried[index].num_losses, tried[index].loss_sum))


def _step(part: int, num_steps: int) -> int:
    return max(1, num_steps * part // NUM_PARTS)
