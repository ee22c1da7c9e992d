"""A trained result that is ready to be published: the job's result and the bytes of the version.

The bytes are made once and kept until they are published, so a repeated publication after a crash writes the same
version.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version

from shared.prompt.blob import encode_blob
from shared.prompt.manifest import Manifest, utc_now
from shared.values.results import SearchCandidate, TuningResult
from trainer_service.jobs.comparisons import as_json, records, search_note, verdict
from trainer_service.jobs.model import Job, Note
from trainer_service.jobs.stored_json import from_json, to_json
from trainer_service.publish.gate import Evidence, decide
from trainer_service.publish.predecessor import Predecessor, compare_kept
from trainer_service.training.comparison import CURRENT
from trainer_service.training.events import TrainingResult, TriedCandidate
from trainer_service.training.spec import TrainingSpec

_LENGTH_BYTES = 4
_OF_TRAINING = {field.name for field in fields(TrainingResult)}
_SAME = {field.name for field in fields(TuningResult)} & _OF_TRAINING - {"comparisons"}
"""Facts that the job's result has as its training found them."""


@dataclass(frozen=True)
class Publication:
    """The result and the blob of a trained job."""

    result: TuningResult
    blob: bytes
    """The version's bytes; empty if the gate forbids publication."""

    def encode(self) -> bytes:
        """The bytes of the job's file: the length of the result (4 bytes), the result as JSON, the blob."""
        text = to_json(self.result).encode()
        return len(text).to_bytes(_LENGTH_BYTES, "big") + text + self.blob

    @classmethod
    def decode(cls, data: bytes) -> Publication:
        """The inverse of `encode`."""
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        return cls(from_json(TuningResult, data[_LENGTH_BYTES:end]), data[end:])


def make_publication(
    job: Job, trained: TrainingResult, current_version: str, predecessor: Predecessor | None
) -> Publication:
    """Applies the gate and builds the version's blob. The prompt was compared with `current_version`, or is compared
    here with what is kept of it (`predecessor`) because it belongs to another base model. Raises InvalidInput if the
    result can't be encoded as a version.
    """
    metric, why_unmeasured = job.effective.training.hyperparameters.metric, ""
    if predecessor is not None:
        found = compare_kept(metric, trained.answers, predecessor)
        if isinstance(found, str):
            why_unmeasured = found
        else:
            current = {metric.value.lower(): found.other}
            trained = replace(trained, comparisons={**trained.comparisons, CURRENT: found}, current_metrics=current)
    evidence = Evidence(trained.estimate, trained.comparisons, bool(current_version), trained.is_apart, why_unmeasured)
    decision = decide(job.spec.publish.gate, metric, evidence)
    estimate = trained.estimate
    has_interval = estimate is not None and math.isfinite(estimate.low) and math.isfinite(estimate.high)
    result = TuningResult(
        **{name: getattr(trained, name) for name in _SAME},
        gate_decision=decision.reason,
        current_version=current_version,
        comparisons=records(trained.comparisons),
        verdict=verdict(trained.comparisons),
        metric_low=estimate.low if estimate is not None and has_interval else None,
        metric_high=estimate.high if estimate is not None and has_interval else None,
        judged_apart=trained.is_apart,
        candidates=tuple(_candidate(one) for one in trained.tried),
        num_skipped_steps=trained.num_skipped,
    )
    return Publication(result, _blob(job, trained, result) if decision.publish else b"")


def notes_of(result: TuningResult) -> list[Note]:
    """Notes on a trained prompt: the choice of a search, the verdict if the prompt did not beat every rival, and facts
    that the metrics don't show.
    """
    beaten = all(comparison.beats for comparison in result.comparisons if comparison.rival != CURRENT)
    unknown = [name for name, value in result.metrics.items() if not math.isfinite(value)]
    texts = (
        "" if result.best_step else "training did not improve the version that it started from, which is kept as it is",
        search_note(result.candidates),
        "" if beaten else result.verdict,
        f"{', '.join(unknown)} of the held-out examples is not finite: the model can't compute some of them"
        if unknown
        else "",
    )
    return [Note(text=text) for text in texts if text]


def _candidate(tried: TriedCandidate) -> SearchCandidate:
    return SearchCandidate(
        learning_rate=tried.learning_rate,
        init_method=tried.init.method,
        num_steps=tried.num_steps,
        losses=tried.losses,
        metrics=dict(tried.metrics),
        chosen=tried.chosen,
        end=tried.end,
    )


def _blob(job: Job, trained: TrainingResult, result: TuningResult) -> bytes:
    manifest = Manifest(
        prompt=job.spec.prompt,
        job=job.name,
        base_model=job.effective.base_model,
        template=job.effective.training.template,
        kind=trained.prefix.kind,
        num_virtual_tokens=trained.prefix.num_virtual_tokens,
        hidden_size=job.effective.base_model.hidden_size,
        labels=job.effective.training.labels,
        sampling_defaults=job.spec.sampling_defaults,
        metrics={name: float(value) for name, value in trained.metrics.items() if math.isfinite(value)},  # strict JSON
        recipe={
            **_trained_with(job, trained).model_dump(mode="json"),
            "dataset": job.spec.dataset,
            "validation_dataset": job.spec.validation_dataset,
            "validation_fraction": job.effective.validation_fraction,
            "provenance": {"caller": job.caller[:200], "job": job.name, "software": _software()},
            "best_step": trained.best_step,
            "num_steps": trained.num_steps,
            **({} if trained.statistics is None else {"dataset_statistics": asdict(trained.statistics)}),
            **({"candidates": [as_json(one) for one in result.candidates]} if result.candidates else {}),
        },
        parent=job.effective.source_version,
        golden=trained.golden,
        created_at=utc_now(),
        gate={
            "decision": result.gate_decision,
            "verdict": result.verdict,
            "comparisons": [as_json(one) for one in result.comparisons],
            "num_judging": result.num_judging,
            "judged_apart": result.judged_apart,
            "num_shots": result.num_shots,
        },
    )
    return encode_blob(trained.prefix, manifest)


@cache
def _software() -> str:
    """This build. To read its version takes as long as all else of a small publication."""
    return f"softprompt {version('softprompt')}"


def _trained_with(job: Job, trained: TrainingResult) -> TrainingSpec:
    """The job's spec with the values that a search chose."""
    training = job.effective.training
    chosen = {"learning_rate": trained.learning_rate or None, "init": trained.init}
    filled = training.hyperparameters.model_copy(
        update={name: value for name, value in chosen.items() if value is not None}
    )
    return training.model_copy(update={"hyperparameters": filled})
