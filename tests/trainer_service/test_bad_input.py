"""Bad requests through a real channel: each is refused with a status that names the field, and nothing is stored."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from prompttuning.v1 import tuning_pb2 as pb
from prompttuning.v1.common_pb2 import Message, SamplingParams, Template

from shared.errors import InvalidInput, NotFound, PreconditionFailed, SoftPromptError
from tests.trainer_service.conftest import RunningTrainer, refused
from tests.trainer_service.requests import (
    chat_examples,
    classification_examples,
    create_job,
    generation_examples,
    inline,
    json_lines,
    tuning_spec,
    upload_of,
)
from tests.waiting import until
from trainer_service.datasets.store import MAX_CONCURRENT_UPLOADS

HYPER, SAMPLING = "spec.hyperparameters", "spec.sampling_defaults"


def hyper(**fields: Any) -> dict[str, Any]:
    return {"hyperparameters": pb.Hyperparameters(**fields)}


def init(**fields: Any) -> dict[str, Any]:
    return hyper(init=pb.PromptInit(**fields))


def conversation(*turns: tuple[str, str]) -> pb.Example:
    return pb.Example(
        conversation=pb.Conversation(messages=[Message(role=role, content=content) for role, content in turns])
    )


GOOD = generation_examples(4)
EXAMPLES = "spec.dataset.inline.examples"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a name that leaves the store": ({"prompt": "../../etc/passwd"}, "spec.prompt"),
    "no name": ({"prompt": ""}, "spec.prompt"),
    "a name in capitals": ({"prompt": "Support"}, "spec.prompt"),
    "a name of 64 characters": ({"prompt": "a" * 64}, "spec.prompt"),
    "an unknown base model": ({"base_model": "gpt-9"}, "spec.base_model"),
    "no dataset": ({"dataset": pb.DatasetSource()}, "spec.dataset"),
    "no examples": ({"dataset": inline([])}, EXAMPLES),
    "one example": ({"dataset": inline(GOOD[:1])}, "spec.dataset"),
    "an example without target": ({"dataset": inline([*GOOD, pb.Example(input="x")])}, f"{EXAMPLES}[4].target"),
    "an empty output": ({"dataset": inline([*GOOD, pb.Example(input="x", output=" ")])}, f"{EXAMPLES}[4].output"),
    "an empty input": ({"dataset": inline([pb.Example(output="x"), *GOOD])}, f"{EXAMPLES}[0].input"),
    "mixed kinds": ({"dataset": inline([*GOOD, pb.Example(input="x", label="y")])}, f"{EXAMPLES}[4]"),
    "a conversation with an input": (
        {"dataset": inline([pb.Example(input="x", conversation=chat_examples(1)[0].conversation)])},
        f"{EXAMPLES}[0].input",
    ),
    "a conversation that ends with the user": (
        {"dataset": inline([*chat_examples(3), conversation(("assistant", "a"), ("user", "b"))])},
        f"{EXAMPLES}[3].messages",
    ),
    "a role that does not exist": (
        {"dataset": inline([*chat_examples(3), conversation(("root", "a"), ("assistant", "b"))])},
        f"{EXAMPLES}[3].messages[0].role",
    ),
    "an example longer than the context": (
        {"dataset": inline([*GOOD, pb.Example(input="x" * 600, output="y")])},
        f"{EXAMPLES}[4]",
    ),
    "a held-out example longer than the context": (
        {"validation_dataset": inline([pb.Example(input="x" * 600, output="y")])},
        "spec.validation_dataset.inline.examples[0]",
    ),
    "a dataset name that leaves the store": ({"dataset": pb.DatasetSource(dataset="datasets/../../x")}, "NotFound"),
    "a dataset that was never uploaded": (
        {"dataset": pb.DatasetSource(dataset="datasets/sha256-" + "0" * 64)},
        "NotFound",
    ),
    "a URI where none are allowed": ({"dataset": pb.DatasetSource(uri="file:///etc/passwd")}, "spec.dataset.uri"),
    "a fraction of 1": ({"validation_fraction": 1.0}, "spec.validation_fraction"),
    "a fraction of 0": ({"validation_fraction": 0.0}, "spec.validation_fraction"),
    "a fraction that is not a number": ({"validation_fraction": math.nan}, "spec.validation_fraction"),
    "a fraction that leaves none": ({"validation_fraction": 0.001}, "spec.validation_fraction"),
    "held-out examples of another kind": ({"validation_dataset": inline(chat_examples(3))}, "spec.validation_dataset"),
    "a template without its field": ({"template": Template(text="Answer:")}, "spec.template.text"),
    "a template with two fields": ({"template": Template(text="{input}{input}")}, "spec.template.text"),
    "a template of a megabyte": ({"template": Template(text="{input}" + "x" * (1 << 20))}, "spec.template.text"),
    "a system message without chat": (
        {"template": Template(text="{input}", system="Be nice", format=Template.FORMAT_TEXT)},
        "spec.template.system",
    ),
    "an unknown template format": ({"template": Template(format=9)}, "spec.template.format"),  # type: ignore[arg-type]
    "conversations in a text template": (
        {"dataset": inline(chat_examples()), "template": Template(format=Template.FORMAT_TEXT)},
        "spec.template.format",
    ),
    "an unknown task": ({"task": 77}, "spec.task"),
    "a task that is not the examples'": ({"task": pb.TASK_KIND_CHAT}, "spec.task"),
    "labels without classification": ({"labels": ["a", "b"]}, "spec.labels"),
    "a label outside the set": (
        {"dataset": inline(classification_examples(3)), "labels": ["even", "zero"]},
        f"{EXAMPLES}[1].label",
    ),
    "one label only": ({"dataset": inline([pb.Example(input=str(n), label="a") for n in range(4)])}, "spec.labels"),
    "an empty label": (
        {"dataset": inline(classification_examples(4)), "labels": ["even", "odd", ""]},
        "spec.labels[2]",
    ),
    "a label twice": (
        {"dataset": inline(classification_examples(4)), "labels": ["even", "odd", "odd"]},
        "spec.labels[2]",
    ),
    "no virtual tokens": (hyper(num_virtual_tokens=0), f"{HYPER}.num_virtual_tokens"),
    "more virtual tokens than the limit": (hyper(num_virtual_tokens=101), f"{HYPER}.num_virtual_tokens"),
    "an absurd number of virtual tokens": (hyper(num_virtual_tokens=2**31 - 1), f"{HYPER}.num_virtual_tokens"),
    "a learning rate of zero": (hyper(learning_rate=0.0), f"{HYPER}.learning_rate"),
    "a learning rate that is not a number": (hyper(learning_rate=math.nan), f"{HYPER}.learning_rate"),
    "an infinite learning rate": (hyper(learning_rate=math.inf), f"{HYPER}.learning_rate"),
    "a negative weight decay": (hyper(weight_decay=-0.1), f"{HYPER}.weight_decay"),
    "a batch of none": (hyper(batch_size=0), f"{HYPER}.batch_size"),
    "a batch beyond the limit": (hyper(batch_size=5000), f"{HYPER}.batch_size"),
    "a learning rate beyond the limit": (hyper(learning_rate=11.0), f"{HYPER}.learning_rate"),
    "a batch larger than the data": (hyper(batch_size=1000), f"{HYPER}.batch_size"),
    "epochs and steps": (hyper(num_epochs=1, num_steps=1), f"{HYPER}.num_epochs"),
    "a negative seed": (hyper(seed=-1), f"{HYPER}.seed"),
    "warm-up longer than training": (hyper(num_steps=10, warmup_steps=10), f"{HYPER}.warmup_steps"),
    "a class weight of zero": (hyper(class_weights={"a": 0.0}), f"{HYPER}.class_weights.a"),
    "a class weight that is not a number": (hyper(class_weights={"a": math.nan}), f"{HYPER}.class_weights.a"),
    "class weights without classes": (hyper(class_weights={"a": 1.0}), f"{HYPER}.class_weights"),
    "smoothing of 1": (hyper(label_smoothing=1.0), f"{HYPER}.label_smoothing"),
    "an unknown metric": (hyper(metric=99), f"{HYPER}.metric"),
    "an unknown schedule": (hyper(schedule=99), f"{HYPER}.schedule"),
    "an unknown reparameterisation": (hyper(reparameterisation=99), f"{HYPER}.reparameterisation"),
    "accuracy of generation": (hyper(metric=pb.METRIC_ACCURACY), f"{HYPER}.metric"),
    "an unknown init": (init(method=99), f"{HYPER}.init.method"),
    "label init without labels": (init(method=pb.PromptInit.METHOD_LABELS), f"{HYPER}.init.method"),
    "a source without its method": (init(method=pb.PromptInit.METHOD_RANDOM, source="a@1"), f"{HYPER}.init.source"),
    "a text without its method": (init(method=pb.PromptInit.METHOD_RANDOM, text="x"), f"{HYPER}.init.text"),
    "a text as long as a book": (init(text="x" * 32_769), f"{HYPER}.init.text"),
    "no source": (init(method=pb.PromptInit.METHOD_FROM_PROMPT), f"{HYPER}.init.source"),
    "a malformed source": (init(method=pb.PromptInit.METHOD_FROM_PROMPT, source="../x@1"), f"{HYPER}.init.source"),
    "a source that does not exist": (init(method=pb.PromptInit.METHOD_FROM_PROMPT, source="nobody@1"), "NotFound"),
    "a blank init text": (init(method=pb.PromptInit.METHOD_TEXT, text="  "), f"{HYPER}.init.text"),
    "a numeric alias": ({"publish": pb.PublishPolicy(alias="7")}, "spec.publish.alias"),
    "an alias that leaves the store": ({"publish": pb.PublishPolicy(alias="../x")}, "spec.publish.alias"),
    "a gate that is not a number": (
        {"publish": pb.PublishPolicy(gate=pb.PublishGate(minimum_metric=math.nan))},
        "spec.publish.gate.minimum_metric",
    ),
    "beating nothing": (
        {"publish": pb.PublishPolicy(alias="-", gate=pb.PublishGate(beat_current=True))},
        "spec.publish.gate.beat_current",
    ),
    "a gate that too few held-out examples would judge": (
        {"publish": pb.PublishPolicy(gate=pb.PublishGate(beat_bare_model=True))},
        "spec.publish.gate",
    ),
    "a priority beyond its range": ({"priority": 101}, "spec.priority"),
    "no time": ({"max_runtime": Duration(seconds=0)}, "spec.max_runtime"),
    "negative time": ({"max_runtime": Duration(seconds=-5)}, "spec.max_runtime"),
    "a malformed duration": ({"max_runtime": Duration(seconds=5, nanos=-5)}, "spec.max_runtime"),
    "more time than allowed": ({"max_runtime": Duration(seconds=10**9)}, "spec.max_runtime"),
    "a temperature that is not a number": (
        {"sampling_defaults": SamplingParams(temperature=math.nan)},
        "spec.sampling_defaults.temperature",
    ),
    "a top_p of zero": ({"sampling_defaults": SamplingParams(top_p=0)}, "spec.sampling_defaults.top_p"),
    "a seed as a default": ({"sampling_defaults": SamplingParams(seed=1)}, "spec.sampling_defaults.seed"),
    "an empty stop sequence": (
        {"sampling_defaults": SamplingParams(stop_sequences=["a", ""])},
        f"{SAMPLING}.stop_sequences[1]",
    ),
    "too many stop sequences": (
        {"sampling_defaults": SamplingParams(stop_sequences=["a"] * 10_000)},
        f"{SAMPLING}.stop_sequences",
    ),
    "an argument of the template that is not a number": (
        {
            "template": Template(
                format=Template.FORMAT_CHAT, arguments=Struct(fields={"x": Value(number_value=math.nan)})
            )
        },
        "spec.template.arguments",
    ),
    "a weight that is not a number": (
        {"hyperparameters": pb.Hyperparameters(class_weights={"a": math.nan})},
        "spec.hyperparameters.class_weights.a",
    ),
    "a deadline beyond the calendar": ({"deadline": Timestamp(seconds=10**15)}, "spec.deadline"),
    "too many annotations": ({"annotations": {str(n): "x" for n in range(33)}}, "spec.annotations"),
    "an annotation without a key": ({"annotations": {"": "x"}}, "spec.annotations['']"),
    "an annotation of a megabyte": ({"annotations": {"a": "x" * (1 << 20)}}, "spec.annotations['a']"),
}


async def test_every_bad_spec_is_refused_naming_its_field(trainer: RunningTrainer) -> None:
    wrong = []
    for case, (fields, expected) in CASES.items():
        error = await refused(create_job(trainer, **fields))
        if expected == "NotFound":
            found = [type(error).__name__]
        else:
            found = (
                [violation.field for violation in error.violations]
                if isinstance(error, InvalidInput)
                else [repr(error)]
            )
        if found != [expected]:
            wrong.append(f"{case}: expected {expected}, got {found}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not (await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest())).jobs


async def test_everything_wrong_is_said_at_once(trainer: RunningTrainer) -> None:
    error = await refused(
        create_job(
            trainer,
            prompt="../x",
            priority=1000,
            **hyper(learning_rate=-1.0, seed=-1),
            template=Template(format=9),  # type: ignore[arg-type]
        )
    )
    assert isinstance(error, InvalidInput)
    fields = {violation.field for violation in error.violations}
    assert fields == {"spec.prompt", "spec.priority", f"{HYPER}.learning_rate", f"{HYPER}.seed", "spec.template.format"}
    lines = [pb.Example(input=f"{n}", output="" if n in (2, 5) else "x") for n in range(8)]
    error = await refused(create_job(trainer, dataset=inline(lines)))
    assert isinstance(error, InvalidInput)
    assert [violation.field for violation in error.violations] == [f"{EXAMPLES}[2].output", f"{EXAMPLES}[5].output"]


async def test_a_request_id_has_a_bound(trainer: RunningTrainer) -> None:
    for request_id in ("x" * 129, "a\0b"):
        for validate_only in (False, True):
            request = pb.CreateTuningJobRequest(spec=tuning_spec(), request_id=request_id, validate_only=validate_only)
            error = await refused(trainer.tuning.CreateTuningJob(request))
            assert isinstance(error, InvalidInput)
            assert error.violations[0].field == "request_id"


def stored(trainer: RunningTrainer) -> list[Path]:
    return list(trainer.settings.datasets_dir.iterdir())


BAD_UPLOADS: dict[str, tuple[list[pb.UploadDatasetRequest], str]] = {
    "nothing": ([], "header"),
    "no header": ([pb.UploadDatasetRequest(chunk=json_lines())], "header"),
    "a second header": ([*upload_of(json_lines()), pb.UploadDatasetRequest(header=pb.DatasetHeader())], "chunk"),
    "an empty part": ([*upload_of(json_lines()), pb.UploadDatasetRequest()], "chunk"),
    "fewer bytes than announced": (list(upload_of(json_lines(), size_bytes=10_000)), "header.size_bytes"),
    "another digest": (list(upload_of(json_lines(), digest="sha256:" + "0" * 64)), "header.digest"),
    "a malformed digest": (list(upload_of(json_lines(), digest="md5:x")), "header.digest"),
    "a negative size": (list(upload_of(json_lines(), size_bytes=-1)), "header.size_bytes"),
    "a size beyond the limit": (list(upload_of(json_lines(), size_bytes=1 << 40)), "header.size_bytes"),
    "no examples": (list(upload_of(b"\n\n")), "dataset"),
    "not JSON": (list(upload_of(json_lines(3) + b"{oops\n")), "dataset line 4"),
    "not UTF-8": (list(upload_of(json_lines(3) + b'{"input": "\xff", "output": "x"}\n')), "dataset line 4"),
    "an unknown key": (list(upload_of(b'{"input": "a", "outptu": "x"}\n')), "dataset line 1"),
    "a key twice": (list(upload_of(b'{"input": "a", "input": "b", "output": "x"}\n')), "dataset line 1"),
    "a number as input": (list(upload_of(b'{"input": 7, "output": "x"}\n')), "dataset line 1 input"),
    "deep nesting": (list(upload_of(b"[" * 100_000 + b"\n")), "dataset line 1"),
    "one label": (list(upload_of(b'{"input": "a", "label": "x"}\n{"input": "b", "label": "x"}\n')), "header.labels"),
    "an array": (list(upload_of(b"[1, 2]\n")), "dataset line 1"),
    "a label outside the header's": (
        list(upload_of(b'{"input": "a", "label": "x"}\n{"input": "b", "label": "z"}\n', labels=["x", "y"])),
        "dataset line 2 label",
    ),
    "too many lines": (list(upload_of(json_lines(5_001))), "dataset line 5001"),
    "a chunk of 2 MiB": (list(upload_of(b" " * (2 << 20), chunk_bytes=2 << 20)), "chunk"),
    "ten megabytes on one line": (list(upload_of(b'{"input": "' + b"x" * (10 << 20), size_bytes=0)), "dataset line 1"),
    "a long line after short ones": (list(upload_of(json_lines(3) + b"x" * ((1 << 20) + 1))), "dataset line 4"),
    "more bytes than the limit": (
        list(upload_of(b"\n".join([b" " * 1_000_000] * 5), size_bytes=0, digest="")),
        "dataset",
    ),
}


async def test_every_bad_upload_is_refused_and_leaves_nothing(trainer: RunningTrainer) -> None:
    wrong = []
    for case, (requests, expected) in BAD_UPLOADS.items():
        error = await refused(trainer.tuning.UploadDataset(iter(requests)))
        found = (
            [violation.field for violation in error.violations] if isinstance(error, InvalidInput) else [repr(error)]
        )
        if found != [expected]:
            wrong.append(f"{case}: expected {expected}, got {found}: {error}")
        if stored(trainer):
            wrong.append(f"{case}: left {stored(trainer)}")
    assert not wrong, "\n".join(wrong)


async def test_a_client_that_vanishes_while_uploading_leaves_nothing(trainer: RunningTrainer) -> None:
    call = trainer.tuning.UploadDataset()
    header, *chunks = upload_of(json_lines(2000), chunk_bytes=10_000)
    await call.write(header)
    for chunk in chunks[:3]:
        await call.write(chunk)
    await until(lambda: bool(stored(trainer)))
    call.cancel()
    await until(lambda: not stored(trainer))
    uploaded = await trainer.tuning.UploadDataset(upload_of(json_lines()))  # and the service goes on
    assert uploaded.num_examples == 20


async def test_a_connection_that_breaks_while_uploading_leaves_nothing(trainer: RunningTrainer) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{trainer.port}")
    call = type(trainer)(trainer.settings, trainer.port, channel, trainer.stop, trainer.task).tuning.UploadDataset()
    header, *chunks = upload_of(json_lines(2000), chunk_bytes=10_000)
    await call.write(header)
    await call.write(chunks[0])
    await until(lambda: bool(stored(trainer)))
    await channel.close()
    await until(lambda: not stored(trainer))


async def test_more_uploads_than_allowed_at_once_are_asked_to_wait(trainer: RunningTrainer) -> None:
    calls = [trainer.tuning.UploadDataset() for _ in range(MAX_CONCURRENT_UPLOADS + 1)]
    header, *_ = upload_of(json_lines())
    await asyncio.gather(*(call.write(header) for call in calls[:-1]))
    await until(lambda: len(stored(trainer)) == MAX_CONCURRENT_UPLOADS)
    error = await refused(trainer.tuning.UploadDataset(upload_of(json_lines())))
    assert type(error).__name__ == "Overloaded"
    for call in calls:
        call.cancel()
    await until(lambda: not stored(trainer))


async def test_a_message_beyond_the_limit_is_refused_and_the_service_goes_on(trainer: RunningTrainer) -> None:
    huge = [pb.Example(input="x" * (1 << 20), output="y") for _ in range(17)]
    error = await refused(create_job(trainer, dataset=inline(huge)))
    assert isinstance(error, SoftPromptError)
    assert not isinstance(error, NotFound | PreconditionFailed)
    assert (await create_job(trainer)).name
