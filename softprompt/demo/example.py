"""The examples in `examples/`: their files, the job that trains on one, and its result."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.close_names import did_you_mean
from shared.errors import NotFound
from shared.values.enums import Metric
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.spec import TuningSpec
from softprompt.report.words import ANSWERS, RIVALS

if TYPE_CHECKING:
    from softprompt.client.async_client import AsyncClient
    from softprompt.types.events import JobEvent
    from softprompt.types.report import JobReport

_PACKAGE = Path(__file__).resolve().parents[1]
SETTINGS = "example.toml"
_MODELS = {**RIVALS, "bare_model": "bare model"}
"""Titles of the rivals. The jobs here have no template, so the model with the template is the bare model."""
_NUM_ANSWERS = 3


def examples_dir() -> Path:
    """The folder of all examples: inside the package in the wheel, beside it in a checkout."""
    inside = _PACKAGE / "examples"
    return inside if inside.is_dir() else _PACKAGE.parent / "examples"


@dataclass(frozen=True)
class Example:
    """A folder with `train.jsonl`, `heldout.jsonl` and the settings of `example.toml`."""

    name: str
    folder: Path
    title: str
    hyperparameters: Hyperparameters
    """The metric; the instruction that a person would write for the bare model, from which the prompt starts; and those
    that `example.toml` sets. The recipe chooses the others.
    """

    @property
    def spec(self) -> TuningSpec:
        """The job."""
        return TuningSpec(
            prompt=self.name,
            dataset=self.folder / "train.jsonl",
            validation_dataset=self.folder / "heldout.jsonl",
            hyperparameters=self.hyperparameters,
        )


def _load(folder: Path) -> Example:
    settings = tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    init = Init(text=settings["instruction"])
    chosen = Hyperparameters(
        init=init, metric=Metric(settings["metric"].upper()), **settings.get("hyperparameters", {})
    )
    return Example(folder.name, folder, settings["title"], chosen)


def known_examples() -> list[Example]:
    """All examples that `softprompt example` can run, by name."""
    return [_load(file.parent) for file in sorted(examples_dir().glob(f"*/{SETTINGS}"))]


def find_example(name: str) -> Example:
    """The example of that name. Raises NotFound."""
    known = {example.name: example for example in known_examples()}
    if name not in known:
        raise NotFound("example", name, did_you_mean(name, known).removeprefix("; ") or f"there are {', '.join(known)}")
    return known[name]


async def train(client: AsyncClient, example: Example, on_event: Callable[[JobEvent], object]) -> JobReport:
    """Run the example's job to its end. Raises JobFailed."""
    job = await client.tune(example.spec, on_event=on_event)
    return await client.job_report(job.name)


def outcome(example: Example, report: JobReport) -> dict[str, Any]:
    """The tuned prompt and its rivals on the held-out examples, with 95 % intervals and some answers, as plain data."""
    job, result = report.job, report.job.result
    if result is None or not result.comparisons:
        raise NotFound("comparison", job.name)
    chosen = job.effective_spec.hyperparameters if job.effective_spec else Hyperparameters()
    return {
        "example": example.name,
        "metric": result.comparisons[0].metric,
        "num_train": job.dataset_statistics.num_train if job.dataset_statistics else None,
        "num_held_out": result.comparisons[0].num_examples,
        "tuned": {"value": result.comparisons[0].value, "low": result.metric_low, "high": result.metric_high},
        "rivals": [
            {
                "model": f"{result.num_shots}-shot" if one.rival == "few_shot_model" else _MODELS[one.rival],
                "value": one.rival_value,
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "beaten": one.beats,
            }
            for one in result.comparisons
        ],
        "loss": {
            "tuned": result.metrics.get("loss"),
            "bare model": result.bare_metrics.get("loss"),
            "instructed": result.instructed_metrics.get("loss"),
            "few-shot": result.few_shot_metrics.get("loss"),
        },
        "num_virtual_tokens": chosen.num_virtual_tokens,
        "num_steps": chosen.num_steps,
        "best_step": result.best_step,
        "worker_seconds": round(report.cost.worker_time_seconds, 1) if report.cost else None,
        "base_model": report.lineage.base_model.id if report.lineage and report.lineage.base_model else None,
        "answers": _answers(report),
    }


def _answers(report: JobReport) -> list[dict[str, str]]:
    """A few held-out inputs with the expected answer and those of the models; first those that most models answered."""
    found = [
        {"input": answer.input, "expected": answer.reference}
        | {
            title: one.text
            for name, title in ANSWERS.items()
            if (one := getattr(answer, name)) is not None and one.text is not None
        }
        for answer in report.answers
    ]
    return sorted(found, key=len, reverse=True)[:_NUM_ANSWERS]
