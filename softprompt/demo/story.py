"""The demo from its first to its last step. Each step prints what it does and checks its claims."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from shared.text.counted import counted
from shared.values.enums import InitMethod
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.spec import PublishPolicy, TuningSpec
from shared.values.template import Template
from softprompt.client.async_client import AsyncClient
from softprompt.demo.answers import AnswerTable, greedy, show_side_by_side, unseen_inputs
from softprompt.demo.curve import TrainingRecord, save_curve
from softprompt.demo.plan import DemoPlan
from softprompt.demo.promises import PromiseBroken, Promises
from softprompt.demo.swap import Swap, check_swap, expected_answers
from softprompt.display.training import training_display
from softprompt.local.services import LocalServices
from softprompt.types.events import JobEvent
from softprompt.types.jobs import TuningJob

LINE_SECONDS = 15.0
"""Time between two lines about a training without a terminal."""


@dataclass
class Story:
    """The steps of the demo. They use running services, and do not stop them."""

    console: Console
    plan: DemoPlan
    output: Path
    promises: Promises
    records: list[TrainingRecord] = field(default_factory=list)
    datasets: tuple[str, str] = ("", "")
    began: float = field(default_factory=time.monotonic)

    async def run(self, services: LocalServices) -> None:
        """Run all steps. Raises PromiseBroken if the demo can't continue."""
        plan = self.plan
        async with AsyncClient(services.trainer_endpoint, services.inference_endpoint) as client:
            await self._upload(client)
            with self._act("Train version 1"):
                spec = self._spec(plan.first_steps, plan.learning_rate, PublishPolicy("default"))
                first = await self._train(client, "version 1", spec)
            with self._act("Wait until it is served"):
                await self._wait_until_served(client, first)
            with self._act("Unseen products: the bare model beside the prompt, one batch"):
                await show_side_by_side(client, self.console, self.plan, first)
            with self._act("Train on from version 1"):
                init = Init(InitMethod.FROM_PROMPT, source=f"{self.plan.prompt}@{_number(first)}")
                spec = self._spec(plan.second_steps, plan.second_learning_rate, PublishPolicy("-"), init)
                second = await self._train(client, "version 2", spec)
                await self._wait_until_served(client, second)
            with self._act("Swap version 2 in while version 1 answers"):
                await self._swap(client, _number(first), _number(second))
            with self._act("The loss curve"):
                picture = await asyncio.to_thread(
                    save_curve, self.records, f"Prompt tuning: {self.plan.prompt}", self.output / "loss-curve.png"
                )
                self.console.print(f"  saved as {picture}", markup=False, soft_wrap=True)

    async def _upload(self, client: AsyncClient) -> None:
        with self._act("Upload the examples"):
            train = await client.upload_dataset(self.plan.train_file)
            heldout = await client.upload_dataset(self.plan.heldout_file)
            self.datasets = (train.dataset, heldout.dataset)
            self.console.print(f"  {train.num_examples} to train on, {heldout.num_examples} held out", markup=False)

    def _spec(
        self, num_steps: int, learning_rate: float, publish: PublishPolicy, init: Init | None = None
    ) -> TuningSpec:
        plan = self.plan
        return TuningSpec(
            prompt=plan.prompt,
            dataset=self.datasets[0],
            validation_dataset=self.datasets[1],
            template=Template(plan.template),
            hyperparameters=Hyperparameters(
                num_virtual_tokens=plan.num_virtual_tokens if init is None else None,
                init=init,
                batch_size=plan.batch_size,
                learning_rate=learning_rate,
                num_steps=num_steps,
                evaluation_interval_steps=plan.evaluation_interval_steps,
                early_stop_patience=0,
                seed=plan.seed,
            ),
            publish=publish,
        )

    async def _train(self, client: AsyncClient, title: str, spec: TuningSpec) -> str:
        """Train; returns the name of the published version."""
        record = TrainingRecord(title)
        self.records.append(record)
        with training_display(self.console, title, LINE_SECONDS) as show_event:

            def on_event(event: JobEvent) -> None:
                record.update(event)
                show_event(event)

            job = await client.tune(spec, on_event=on_event)
        return self._published(job, record)

    def _published(self, job: TuningJob, record: TrainingRecord) -> str:
        if job.result is None or not job.result.published:
            reason = job.result.gate_decision if job.result else "no result"
            raise PromiseBroken(f"{job.name} published nothing: {reason}")
        result = job.result
        record.bare_loss = result.bare_metrics.get("loss")
        tuned, bare = result.metrics.get("loss", float("nan")), result.bare_metrics.get("loss", float("nan"))
        self.promises.check(bool(result.version), f"published {result.version} ({result.digest[:19]})")
        self.promises.check(tuned < bare, f"held-out loss {tuned:.3f}, the bare model's is {bare:.3f}")
        instructed, few_shot = (metrics.get("loss") for metrics in (result.instructed_metrics, result.few_shot_metrics))
        record.rival_losses = {
            "model with an instruction": instructed,
            f"model with {counted(result.num_shots, 'example')} in its input": few_shot,
        }
        for title, loss in record.rival_losses.items():
            if loss is not None:
                self.console.print(f"  {title}: {loss:.3f}", markup=False, soft_wrap=True)
        return result.version

    async def _wait_until_served(self, client: AsyncClient, version: str) -> None:
        loaded = await client.wait_until_served(version)
        seconds = loaded.publish_to_served_seconds
        after = "" if seconds is None else f", {seconds:.2f} s after it was published"
        self.promises.check(True, f"{version} is served{after}")

    async def _swap(self, client: AsyncClient, old: int, new: int) -> None:
        inputs, sampling = unseen_inputs(self.plan.heldout_file, self.plan.num_products), greedy(self.plan)
        expected = await expected_answers(client, self.plan.prompt, old, inputs, sampling)
        columns = (f"default, begun before the swap (version {old})", f"default, begun after it (version {new})")
        with AnswerTable(self.console, inputs, columns) as table:
            swap = Swap(client, self.plan.prompt, inputs, sampling, table)
            await swap.run(old, new)
        check_swap(self.promises, swap, expected, sampling, old, new)

    @contextmanager
    def _act(self, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{title}[/] [dim]({time.monotonic() - self.began:.0f} s)[/]")
        yield


def _number(version: str) -> int:
    return int(version.rpartition("/")[2])
