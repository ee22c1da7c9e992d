"""The defaults for what a spec leaves out, and what is refused before a worker gets the job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.caller import Caller, Tenant, calling
from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.store.index import StoreIndex
from shared.text.template import InputEncoder, Message, Template, TemplateFormat
from shared.values.sampling import Sampling
from shared.values.spec import PublishGate, PublishPolicy
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.builders import repetition_of
from trainer_service.base_models import BaseModels, BaseModelSource
from trainer_service.jobs.admission import SpecAdmission, check_minimum
from trainer_service.jobs.model import EffectiveSpec, Job, StoredSpec
from trainer_service.jobs.sources import Sources
from trainer_service.service_info import RequestLimits
from trainer_service.training.data.dataset import parse_examples, split_validation
from trainer_service.training.data.dataset_facts import DatasetFacts
from trainer_service.training.data.example_lines import example_line
from trainer_service.training.spec import Example, Hyperparameters, Init, InitMethod, Metric, TaskKind, TooLong

GENERATION = [Example(line=n, input=f"number {n}", output="yes") for n in range(1, 41)]
CLASSES = [Example(line=n, input=f"number {n}", label="even" if n % 2 == 0 else "odd") for n in range(1, 41)]
CHAT = [
    Example(line=n, messages=(Message(role="user", content=str(n)), Message(role="assistant", content="ok")))
    for n in range(1, 41)
]
DATASETS = {"generation": GENERATION, "classes": CLASSES, "chat": CHAT, "two": GENERATION[:2]}


class Datasets:
    """Datasets by plain names."""

    examples: Mapping[str, Sequence[Example]] = DATASETS

    def describe(self, name: str, labels: Sequence[str] = ()) -> tuple[DatasetFacts, tuple[Example, ...]]:
        if name not in self.examples:
            raise NotFound("dataset", name)
        found = parse_examples(map(example_line, self.examples[name]), labels)
        occurring = tuple(dict.fromkeys(example.label for example in found.examples if example.label is not None))
        facts = DatasetFacts(
            task=found.task,
            labels=occurring,
            num_examples=len(found.examples),
            repetition=repetition_of(found.examples),
            sample=(),
        )
        return facts, found.examples


class NoPrompts:
    def refresh(self) -> StoreIndex:
        return StoreIndex()


class NoJobs:
    def get(self, job_id: str) -> Job:
        raise NotFound("tuning job", job_id)


NO_SOURCES = Sources(NoPrompts(), NoJobs())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path) -> BaseModels:
    models = BaseModels([BaseModelSource("tiny", str(tiny_model_dir))])
    models.load()
    return models


@pytest.fixture
def admission(models: BaseModels) -> SpecAdmission:
    return SpecAdmission(models, Datasets().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))


@pytest.fixture(scope="module")
def encoder(models: BaseModels) -> InputEncoder:
    return InputEncoder(models.get("tiny").tokenizer, Template(text="Q: {input}"))


def spec(**fields: Any) -> StoredSpec:
    return StoredSpec(**{"prompt": "support-tone", "dataset": "generation", **fields})


async def refused_fields(admission: SpecAdmission, **fields: Any) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        await admission.check(spec(**fields))
    return [violation.field for violation in refused.value.violations]


async def test_everything_left_open_is_filled_in(admission: SpecAdmission, models: BaseModels) -> None:
    effective = await admission.check(spec())
    assert isinstance(effective, EffectiveSpec)
    assert effective.base_model == models.infos[0]
    assert effective.training.task is TaskKind.GENERATION
    template = effective.training.template
    assert (template.text, template.format, template.rendering) == ("{input}", TemplateFormat.CHAT, 2)
    assert effective.max_runtime_seconds == 3600
    assert (effective.num_train, effective.num_validation, effective.validation_fraction) == (36, 4, 0.1)
    assert effective.training.hyperparameters.metric is Metric.LOSS


@pytest.mark.parametrize(("dataset", "num_validation"), [("two", 1), ("generation", 4)])
async def test_a_tenth_is_held_out_but_at_least_one(
    admission: SpecAdmission, dataset: str, num_validation: int
) -> None:
    effective = await admission.check(spec(dataset=dataset))
    assert effective.num_validation == num_validation
    train, held_out = split_validation(
        DATASETS[dataset], effective.validation_fraction, effective.training.hyperparameters.seed
    )
    assert (len(train), len(held_out)) == (effective.num_train, effective.num_validation)


async def test_the_counts_are_those_of_the_split_with_the_job_s_own_seed(admission: SpecAdmission) -> None:
    effective = await admission.check(spec(validation_fraction=0.5, hyperparameters=Hyperparameters(seed=99)))
    assert effective.training.hyperparameters.seed == 99
    assert (effective.num_train, effective.num_validation) == (20, 20)


@pytest.mark.parametrize(
    ("dataset", "template", "expected"),
    [
        ("generation", None, TemplateFormat.CHAT),
        ("classes", None, TemplateFormat.CHAT),
        ("chat", None, TemplateFormat.CHAT),
        ("chat", Template(system="Be kind"), TemplateFormat.CHAT),
        ("generation", Template(text="Q: {input}", format=TemplateFormat.TEXT), TemplateFormat.TEXT),
        ("generation", Template(text="Q: {input}", format=TemplateFormat.CHAT), TemplateFormat.CHAT),
    ],
)
async def test_the_template_s_format_is_chat_for_a_chat_model(
    admission: SpecAdmission, dataset: str, template: Template | None, expected: TemplateFormat
) -> None:
    effective = await admission.check(spec(dataset=dataset, template=template))
    assert effective.training.template.format is expected
    assert effective.training.template.text == (template or Template()).text


async def test_conversations_are_text_for_a_model_without_a_chat_template(tmp_path: Path) -> None:
    directory = save_tiny_llama(tmp_path / "model")
    for file in directory.glob("*chat_template*"):
        file.unlink()
    models = BaseModels([BaseModelSource("tiny", str(directory))])
    models.load()
    admission = SpecAdmission(models, Datasets().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    for dataset in ("chat", "generation", "classes"):
        assert (await admission.check(spec(dataset=dataset))).training.template.format is TemplateFormat.TEXT
    assert await refused_fields(admission, dataset="chat", template=Template(format=TemplateFormat.CHAT)) == [
        "spec.template.format"
    ]


async def test_conversations_have_no_text_around_messages(admission: SpecAdmission) -> None:
    """Training would leave it out, and an answer to a single message would have it."""
    assert await refused_fields(admission, dataset="chat", template=Template(text="Q: {input}")) == [
        "spec.template.text"
    ]


async def test_conversations_are_not_text_for_a_chat_model(admission: SpecAdmission) -> None:
    assert await refused_fields(admission, dataset="chat", template=Template(format=TemplateFormat.TEXT)) == [
        "spec.template.format"
    ]


async def test_labels_come_from_the_examples_or_from_the_spec(admission: SpecAdmission) -> None:
    assert (await admission.check(spec(dataset="classes"))).training.labels == ("odd", "even")
    wider = await admission.check(spec(dataset="classes", labels=("even", "odd", "neither")))
    assert wider.training.labels == ("even", "odd", "neither")
    assert wider.training.hyperparameters.metric is Metric.ACCURACY


async def test_refusals_name_fields_of_the_spec(admission: SpecAdmission) -> None:
    assert await refused_fields(admission, base_model="other") == ["spec.base_model"]
    assert await refused_fields(admission, dataset="classes", labels=("even", "odd ")) == ["spec.labels[1]"]
    assert await refused_fields(admission, labels=("a", "b")) == ["spec.labels"]
    assert await refused_fields(admission, task=TaskKind.CHAT) == ["spec.task"]
    assert await refused_fields(admission, validation_dataset="chat") == ["spec.validation_dataset"]
    assert await refused_fields(admission, max_runtime_seconds=3601) == ["spec.max_runtime"]
    assert await refused_fields(admission, hyperparameters=Hyperparameters(num_virtual_tokens=51)) == [
        "spec.hyperparameters.num_virtual_tokens"
    ]
    assert await refused_fields(admission, publish=PublishPolicy(gate=PublishGate(minimum_metric=0.5))) == [
        "spec.publish.gate"
    ]
    percent = PublishPolicy(gate=PublishGate(minimum_metric=90))
    assert await refused_fields(admission, dataset="classes", validation_fraction=0.5, publish=percent) == [
        "spec.publish.gate.minimum_metric"
    ]
    blank = Hyperparameters(init=Init(method=InitMethod.TEXT, text="  "))
    assert await refused_fields(admission, hyperparameters=blank) == ["spec.hyperparameters.init.text"]


async def test_a_default_stop_sequence_that_no_answer_can_have_is_refused(admission: SpecAdmission) -> None:
    assert await admission.check(spec(sampling_defaults=Sampling(stop_sequences=("<end>", "x"))))
    mixed = Sampling(stop_sequences=("x", "x<end>"))
    assert await refused_fields(admission, sampling_defaults=mixed) == ["spec.sampling_defaults.stop_sequences[1]"]


async def test_what_the_caller_must_mend_is_said_together(admission: SpecAdmission) -> None:
    fields = await refused_fields(admission, base_model="other", task=TaskKind.CHAT, max_runtime_seconds=1e9)
    assert fields == ["spec.max_runtime", "spec.base_model", "spec.task"]


async def test_lengths_are_checked_with_the_virtual_tokens(models: BaseModels) -> None:
    room = models.infos[0].max_positions - 50
    fits = Example(
        line=1, input="x" * (room - 5), output="yes"
    )  # a space before the target, and the end of sequence after it
    over = Example(line=2, input="x" * (room - 4), output="yes")

    class Long(Datasets):
        examples = {"fits": (fits, *GENERATION[2:]), "over": (fits, over, *GENERATION[2:])}  # noqa: RUF012 (a test's own)

    admission = SpecAdmission(models, Long().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    text = Template(format=TemplateFormat.TEXT)
    await admission.check(spec(dataset="fits", template=text))
    with pytest.raises(InvalidInput) as refused:
        await admission.check(spec(dataset="over", template=text))
    (violation,) = refused.value.violations
    assert violation.field == "dataset line 2"
    assert "50 virtual tokens" in violation.description
    with pytest.raises(InvalidInput) as refused:
        await admission.check(spec(dataset="fits", validation_dataset="over", template=text))
    assert [violation.field for violation in refused.value.violations] == ["validation dataset line 2"]


async def test_a_sequence_is_no_longer_than_replicas_take(models: BaseModels) -> None:
    long = Example(line=41, input="x" * 200, output="yes")

    class Long(Datasets):
        examples = {"long": (*GENERATION, long)}  # noqa: RUF012 (a test's own)

    admission = SpecAdmission(models, Long().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0, max_positions=100))
    text = Template(format=TemplateFormat.TEXT)
    with pytest.raises(
        InvalidInput, match=r"dataset line 41: 200 input tokens .* room for 88; shorten it, or set spec.too_long"
    ):
        await admission.check(spec(dataset="long", template=text))
    effective = await admission.check(spec(dataset="long", template=text, too_long=TooLong.DROP))
    assert (effective.training.max_positions, effective.training.too_long) == (100, TooLong.DROP)
    narrow = SpecAdmission(models, Long().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0, max_positions=30))
    with pytest.raises(InvalidInput, match="leave no room for text: replicas serve sequences of 30 positions"):
        await narrow.check(spec(dataset="long", hyperparameters=Hyperparameters(num_virtual_tokens=29)))


async def test_examples_that_are_all_the_same_are_refused_and_many_of_one_input_are_not(models: BaseModels) -> None:
    class Few(Datasets):
        examples = {  # noqa: RUF012 (a test's own)
            "one": [Example(line=n, input="Write a slogan.", output="Tea!") for n in range(1, 1001)],
            "outputs": [Example(line=n, input="Write a slogan.", output=f"Tea {n}!") for n in range(1, 1001)],
        }

    admission = SpecAdmission(models, Few().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    with pytest.raises(InvalidInput, match="all 1000 examples are the same, so none can be held out"):
        await admission.check(spec(dataset="one"))
    assert (await admission.check(spec(dataset="outputs"))).num_validation == 100


async def test_the_recipe_stays_within_the_limit_of_virtual_tokens_and_leaves_room_for_text(models: BaseModels) -> None:
    def tokens(effective: EffectiveSpec) -> int:
        return effective.training.hyperparameters.num_virtual_tokens

    strict = SpecAdmission(models, Datasets().describe, NO_SOURCES, RequestLimits(10, 10, 3600.0))
    assert tokens(await strict.check(spec())) == 10
    eleven = Hyperparameters(num_virtual_tokens=11)
    assert await refused_fields(strict, hyperparameters=eleven) == ["spec.hyperparameters.num_virtual_tokens"]
    short = SpecAdmission(models, Datasets().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0, max_positions=256))
    assert tokens(await short.check(spec())) == 32


async def test_unknown_datasets_and_sources_are_not_found(admission: SpecAdmission) -> None:
    with pytest.raises(NotFound, match="dataset"):
        await admission.check(spec(dataset="missing"))
    init = Init(method=InitMethod.FROM_PROMPT, source="nobody@1")
    with pytest.raises(NotFound, match="nobody"):
        await admission.check(spec(hyperparameters=Hyperparameters(init=init)))


async def test_before_the_base_models_are_read_callers_are_asked_to_wait() -> None:
    admission = SpecAdmission(BaseModels([]), Datasets().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    with pytest.raises(Unavailable, match="starting"):
        await admission.check(spec())


async def test_a_job_for_a_base_model_that_is_not_there_is_refused_with_the_reason(tmp_path: Path) -> None:
    models = BaseModels([BaseModelSource("x", str(tmp_path))])
    models.load()
    admission = SpecAdmission(models, Datasets().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    with pytest.raises(PreconditionFailed, match=r"base model x is not available now: .*no config") as refused:
        await admission.check(spec())
    assert str(tmp_path) not in refused.value.message


async def test_a_tenants_large_datasets_do_not_hold_up_another_tenants_jobs(models: BaseModels) -> None:
    go_on = threading.Event()

    class Slow(Datasets):
        def describe(self, name: str, labels: Sequence[str] = ()) -> tuple[DatasetFacts, tuple[Example, ...]]:
            if name == "two":
                go_on.wait(60)
            return super().describe(name, labels)

    admission = SpecAdmission(models, Slow().describe, NO_SOURCES, RequestLimits(50, 10, 3600.0))
    with calling(Caller("a", frozenset(), group=Tenant("greedy"))):
        checks = [asyncio.create_task(admission.check(spec(dataset="two"))) for _ in range(20)]
    with calling(Caller("b", frozenset(), group=Tenant("modest"))):
        await admission.check(spec())
    assert not any(check.done() for check in checks)
    go_on.set()
    await asyncio.gather(*checks)


@pytest.mark.parametrize(
    ("metric", "most", "beyond"),
    [(Metric.ACCURACY, 1, 90), (Metric.EXACT_MATCH, 1, 1.01), (Metric.CHRF, 100, 101), (Metric.LOSS, 0, -0.1)],
)
def test_a_minimum_that_no_prompt_can_reach_is_refused(metric: Metric, most: float, beyond: float) -> None:
    """A percentage where a share is measured would refuse every prompt after its whole training."""
    check_minimum(PublishGate(minimum_metric=most), metric)
    check_minimum(PublishGate(), metric)
    check_minimum(None, metric)
    with pytest.raises(InvalidInput, match=r"spec\.publish\.gate\.minimum_metric: can't be reached"):
        check_minimum(PublishGate(minimum_metric=beyond), metric)
