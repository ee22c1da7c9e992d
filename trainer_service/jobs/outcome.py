"""What training left, ready to be published: the result and the very bytes of the version, kept until the prompt store has them.

The bytes are made once, so publishing again after a crash publishes the same version.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shared.blob import Manifest, encode_blob
from shared.manifest import utc_now
from trainer_service.jobs.gate import decide
from trainer_service.jobs.model import Job, JobResult, NearestToken
from trainer_service.training.events import TrainingResult

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Outcome:
    result: JobResult
    blob: bytes
    """Empty: the gate forbids publication."""

    def encode(self) -> bytes:
        text = self.result.model_dump_json().encode()
        return len(text).to_bytes(_LENGTH_BYTES, "big") + text + self.blob

    @classmethod
    def decode(cls, data: bytes) -> Outcome:
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        return cls(JobResult.model_validate_json(data[_LENGTH_BYTES:end]), data[end:])


def make_outcome(job: Job, trained: TrainingResult, current_version: str = "") -> Outcome:
    """Ask the gate, and build the version's blob; `current_version` is what the trained prompt was compared with.

    Raises InvalidInput if the result can't be written as a version.
    """
    decision = decide(
        job.spec.publish.gate,
        job.effective.training.hyperparameters.metric,
        trained.metrics,
        trained.template_metrics,
        trained.current_metrics,
    )
    result = JobResult(
        gate_decision=decision.reason,
        metrics=dict(trained.metrics),
        bare_metrics=dict(trained.bare_metrics),
        template_metrics=dict(trained.template_metrics),
        current_metrics=dict(trained.current_metrics),
        nearest_tokens=tuple(NearestToken(text=token.text, cosine=token.cosine) for token in trained.nearest_tokens),
        score_stability=trained.score_stability,
        best_step=trained.best_step,
        current_version=current_version,
    )
    return Outcome(result, _blob(job, trained, decision.reason) if decision.publish else b"")


def _blob(job: Job, trained: TrainingResult, gate_decision: str) -> bytes:
    manifest = Manifest(
        prompt=job.spec.prompt,
        job=job.name,
        base_model=job.effective.base_model,
        template=job.effective.training.template,
        num_virtual_tokens=trained.soft_prompt.num_virtual_tokens,
        hidden_size=trained.soft_prompt.hidden_size,
        labels=job.effective.training.labels,
        sampling_defaults=job.spec.sampling_defaults,
        metrics=_finite(trained),
        recipe={
            **job.effective.training.model_dump(mode="json"),
            "dataset": job.spec.dataset,
            "validation_dataset": job.spec.validation_dataset,
            "validation_fraction": job.effective.validation_fraction,
            "best_step": trained.best_step,
            "num_steps": trained.num_steps,
            **({} if trained.statistics is None else {"dataset_statistics": dataclasses.asdict(trained.statistics)}),
        },
        parent=job.effective.source_version,
        golden=trained.golden,
        created_at=utc_now(),
        gate=gate_decision,
    )
    return encode_blob(trained.soft_prompt, manifest)


def _finite(trained: TrainingResult) -> dict[str, float]:
    """The manifest is JSON proper, which has no infinities."""
    return {name: float(value) for name, value in trained.metrics.items() if abs(value) < float("inf")}
