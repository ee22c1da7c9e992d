"""A search over learning rates and inits in one run, by successive halving.

All candidates train in the same steps of the same cohort, on the same batches. After each eighth of the steps, the half
with the worse held-out scores is dropped, until one candidate is left and trains to the end (Jamieson and Talwalkar
2016, arXiv:1502.07943). Six candidates cost twice the work of one.
"""

from __future__ import annotations

import math

from trainer_service.training.spec import Init, InitMethod, TrainingSpec
from trainer_service.training.trainee import Candidate

RATE_FACTORS = (0.4, 1.0, 3.0)
NUM_RUNGS = 8


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


def is_rung(step: int, num_steps: int) -> bool:
    """Whether the candidates are compared after `step` steps."""
    return step > 0 and step % max(1, num_steps // NUM_RUNGS) == 0


def num_survivors(num_candidates: int) -> int:
    """The number of candidates kept at a comparison."""
    return math.ceil(num_candidates / 2)
