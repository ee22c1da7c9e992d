"""The result of a trained job: the best prefix with its metrics, those of its rivals, and how it was chosen."""

from __future__ import annotations

import math
import statistics as numbers

from shared.prompt.manifest import GoldenRecord
from shared.prompt.prefix import Prefix
from shared.values.results import DistillationResult, EncodingStatistics, NearestToken
from trainer_service.training.checkpoint import RunState
from trainer_service.training.comparison import BARE, CURRENT, FEW_SHOT, INSTRUCTED
from trainer_service.training.evaluation.evaluator import Judgement
from trainer_service.training.events import TrainingResult, TriedCandidate
from trainer_service.training.spec import Metric
from trainer_service.training.trainee import Candidate, Trainee

_LAST_SCORES = 5


def training_result(
    state: RunState,
    metric: Metric,
    trainee: Trainee,
    prefix: Prefix,
    judged: Judgement,
    *,
    num_steps: int,
    statistics: EncodingStatistics | None,
    golden: tuple[GoldenRecord, ...],
    nearest: tuple[NearestToken, ...],
    distillation: DistillationResult | None,
) -> TrainingResult:
    """The result of the run with this state. `trainee`: the last one; of a search, `state` knows the chosen one."""
    latest = [record.metrics[metric.value.lower()] for record in state.history[-_LAST_SCORES:]]
    scores = [score for score in latest if math.isfinite(score)]
    tried, best = state.tried, state.best_candidate
    chosen = Candidate(tried[best].learning_rate, tried[best].init) if best < len(tried) else trainee.candidate
    return TrainingResult(
        prefix=prefix,
        best_step=state.best_step,
        num_steps=num_steps,
        metrics=judged.metrics,
        bare_metrics=judged.bare,
        template_metrics=judged.rivals.get(BARE, {}),
        current_metrics=judged.rivals.get(CURRENT, {}),
        golden=golden,
        nearest_tokens=nearest,
        score_stability=numbers.pstdev(scores) if scores else 0.0,
        learning_rate=chosen.learning_rate,
        init=chosen.init,
        instructed_metrics=judged.rivals.get(INSTRUCTED, {}),
        few_shot_metrics=judged.rivals.get(FEW_SHOT, {}),
        num_shots=judged.num_shots,
        comparisons=judged.comparisons,
        estimate=judged.estimate,
        num_judging=judged.num_judging,
        is_apart=judged.is_apart,
        tried=tuple(
            TriedCandidate(
                one.learning_rate,
                one.init,
                one.steps,
                tuple(one.losses),
                one.metrics,
                index == best and state.best_step > 0,  # else the version that training started from is the best
                one.end,
            )
            for index, one in enumerate(tried)
        ),
        num_skipped=trainee.num_skipped,
        statistics=statistics,
        num_tokens=state.num_tokens,
        answers=judged.answers,
        distillation=distillation,
    )
