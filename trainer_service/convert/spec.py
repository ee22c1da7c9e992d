"""`TuningSpec`: what a caller asks for, read and checked for form; and what was asked for or decided, written back."""

from __future__ import annotations

from typing import Any

from prompttuning.v1 import common_pb2, tuning_pb2

from shared.errors import SoftPromptError
from shared.names import check_alias, check_name
from shared.values.sampling import Sampling
from shared.values.template import MAX_TEMPLATE_CHARS
from shared.violations import Violations
from shared.wire.enums import INIT_METHODS, METRICS, REPARAMETERISATIONS, SCHEDULES, TASKS, TOO_LONG
from shared.wire.fields import read_duration, read_timestamp, write_duration, write_timestamp
from shared.wire.models import build, present
from shared.wire.sampling import read_sampling, write_sampling
from shared.wire.template import read_checked_template, write_template
from trainer_service.convert.common import (
    NO_ALIAS,
    alias_from_wire,
    source_to_wire,
)
from trainer_service.convert.examples import source_from_wire
from trainer_service.jobs.model import MAX_REQUEST_ID_CHARS, EffectiveSpec, PublishGate, PublishPolicy, TuningSpec
from trainer_service.jobs.request import JobRequest
from trainer_service.training.spec import HyperparameterRequest, Hyperparameters, Init, InitMethod

_SCALARS = (
    "num_virtual_tokens",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "batch_size",
    "num_epochs",
    "num_steps",
    "evaluation_interval_steps",
    "early_stop_patience",
    "label_smoothing",
    "balance_classes",
    "seed",
    "search",
)
_SPEC_NAMES = {"max_runtime_seconds": "max_runtime"}


def request_from_wire(message: tuning_pb2.CreateTuningJobRequest) -> JobRequest:
    """Raises InvalidInput with every violation of form."""
    violations = Violations()
    if len(message.request_id) > MAX_REQUEST_ID_CHARS:
        violations.add(
            "request_id", f"has {len(message.request_id)} characters; at most {MAX_REQUEST_ID_CHARS} are allowed"
        )
    dataset = source_from_wire(message.spec.dataset, "spec.dataset", violations)
    validation = None
    if message.spec.HasField("validation_dataset"):
        validation = source_from_wire(message.spec.validation_dataset, "spec.validation_dataset", violations)
    spec = _spec_from_wire(message.spec, violations)
    violations.raise_if_any()
    if spec is None or dataset is None:
        raise SoftPromptError("a request was refused without saying why")
    return JobRequest(spec=spec, dataset=dataset, validation=validation, request_id=message.request_id)


def _spec_from_wire(message: tuning_pb2.TuningSpec, violations: Violations) -> TuningSpec | None:
    with violations.collected():
        check_name(message.prompt, "spec.prompt")
    values: dict[str, object] = {
        "prompt": message.prompt,
        "base_model": message.base_model,
        "dataset": "",
        "task": TASKS.checked(message.task, "spec.task", violations),
        "labels": tuple(message.labels),
        "hyperparameters": _hyperparameters_from_wire(message.hyperparameters, "spec.hyperparameters", violations),
        "publish": _publish_from_wire(message.publish, violations),
        "priority": message.priority,
        "sampling_defaults": _sampling_from_wire(message.sampling_defaults, violations),
        "annotations": dict(message.annotations),
    }
    if (too_long := TOO_LONG.checked(message.too_long, "spec.too_long", violations)) is not None:
        values["too_long"] = too_long
    if message.HasField("validation_fraction"):
        values["validation_fraction"] = message.validation_fraction
    if message.HasField("template"):
        values["template"] = read_checked_template(message.template, "spec.template", violations)
    if message.HasField("max_runtime"):
        values["max_runtime_seconds"] = read_duration(message.max_runtime, "spec.max_runtime", violations)
    if message.HasField("deadline"):
        values["deadline"] = read_timestamp(message.deadline, "spec.deadline", violations)
    return build(TuningSpec, values, "spec", _SPEC_NAMES, violations)


def _sampling_from_wire(message: common_pb2.SamplingParams, violations: Violations) -> Sampling:
    sampling = violations.result_of(lambda: read_sampling(message).check_defaults("spec.sampling_defaults"))
    return sampling or Sampling()


def _hyperparameters_from_wire(
    message: tuning_pb2.Hyperparameters, field: str, violations: Violations
) -> HyperparameterRequest:
    values = present(message, _SCALARS)
    values["class_weights"] = dict(message.class_weights)
    if message.HasField("num_epochs") and message.HasField("num_steps"):
        violations.add(f"{field}.num_epochs", "excludes num_steps: give one of them")
    if message.HasField("init"):
        values["init"] = _init_from_wire(message.init, f"{field}.init", violations)
    values["reparameterisation"] = REPARAMETERISATIONS.checked(
        message.reparameterisation, f"{field}.reparameterisation", violations
    )
    values["schedule"] = SCHEDULES.checked(message.schedule, f"{field}.schedule", violations)
    values["metric"] = METRICS.checked(message.metric, f"{field}.metric", violations)
    return build(HyperparameterRequest, values, field, {}, violations) or HyperparameterRequest()


def _init_from_wire(message: tuning_pb2.PromptInit, field: str, violations: Violations) -> Init | None:
    """None where the recipe is to choose. A text or a source without a method means the one method that uses it."""
    method = INIT_METHODS.checked(message.method, f"{field}.method", violations)
    if method is None:
        method = InitMethod.FROM_PROMPT if message.source else InitMethod.TEXT if message.text else None
    if len(message.text) > MAX_TEMPLATE_CHARS:
        violations.add(f"{field}.text", f"has {len(message.text)} characters; at most {MAX_TEMPLATE_CHARS} are allowed")
    if message.text and method is not InitMethod.TEXT:
        violations.add(f"{field}.text", f"is only used by METHOD_TEXT, not by METHOD_{method}")
    if message.source and method is not InitMethod.FROM_PROMPT:
        violations.add(f"{field}.source", f"is only used by METHOD_FROM_PROMPT, not by METHOD_{method}")
    if method is InitMethod.FROM_PROMPT and not message.source:
        violations.add(f"{field}.source", "must name the prompt to start from: NAME, NAME@ALIAS or NAME@VERSION")
    return None if method is None else Init(method=method, text=message.text, source_version=message.source)


def _publish_from_wire(message: tuning_pb2.PublishPolicy, violations: Violations) -> PublishPolicy:
    alias = alias_from_wire(message.alias)
    if alias:
        with violations.collected():
            check_alias(alias, "spec.publish.alias")
    policy: dict[str, object] = {"alias": alias}
    if message.HasField("gate"):
        values = {"beat_bare_model": message.gate.beat_bare_model, "beat_current": message.gate.beat_current}
        values |= present(message.gate, ["minimum_metric"])
        policy["gate"] = build(PublishGate, values, "spec.publish.gate", {}, violations)
    if message.HasField("wait_until_served"):
        field = "spec.publish.wait_until_served"
        policy["wait_until_served_seconds"] = read_duration(message.wait_until_served, field, violations)
    names = {"wait_until_served_seconds": "wait_until_served"}
    return build(PublishPolicy, policy, "spec.publish", names, violations) or PublishPolicy()


def spec_to_wire(spec: TuningSpec) -> tuning_pb2.TuningSpec:
    """What was asked for; inline examples and files appear as the dataset that they were stored as."""
    message = _common_to_wire(spec)
    message.base_model = spec.base_model
    if spec.validation_fraction is not None:
        message.validation_fraction = spec.validation_fraction
    if spec.template is not None:
        message.template.CopyFrom(write_template(spec.template))
    message.task = TASKS.to_wire(spec.task)
    message.labels.extend(spec.labels)
    message.hyperparameters.CopyFrom(hyperparameters_to_wire(spec.hyperparameters))
    if spec.max_runtime_seconds is not None:
        message.max_runtime.CopyFrom(write_duration(spec.max_runtime_seconds))
    return message


def effective_to_wire(spec: TuningSpec, effective: EffectiveSpec) -> tuning_pb2.TuningSpec:
    """What is trained: the same message with nothing left open."""
    message = _common_to_wire(spec)
    message.base_model = effective.base_model.id
    if not spec.validation_dataset:
        message.validation_fraction = effective.validation_fraction
    message.template.CopyFrom(write_template(effective.training.template))
    message.task = TASKS.to_wire(effective.training.task)
    message.labels.extend(effective.training.labels)
    message.hyperparameters.CopyFrom(hyperparameters_to_wire(effective.training.hyperparameters))
    message.max_runtime.CopyFrom(write_duration(effective.max_runtime_seconds))
    return message


def _common_to_wire(spec: TuningSpec) -> tuning_pb2.TuningSpec:
    gate = None
    if spec.publish.gate is not None:
        gate = tuning_pb2.PublishGate(**spec.publish.gate.model_dump())
    seconds = spec.publish.wait_until_served_seconds
    wait = None if seconds is None else write_duration(seconds)
    message = tuning_pb2.TuningSpec(
        prompt=spec.prompt,
        dataset=tuning_pb2.DatasetSource(dataset=spec.dataset),
        publish=tuning_pb2.PublishPolicy(alias=spec.publish.alias or NO_ALIAS, gate=gate, wait_until_served=wait),
        priority=spec.priority,
        sampling_defaults=write_sampling(spec.sampling_defaults),
        annotations=spec.annotations,
        deadline=write_timestamp(spec.deadline),
        too_long=TOO_LONG.to_wire(spec.too_long),
    )
    if spec.validation_dataset:
        message.validation_dataset.dataset = spec.validation_dataset
    return message


def hyperparameters_to_wire(values: HyperparameterRequest | Hyperparameters) -> tuning_pb2.Hyperparameters:
    """The message of hyperparameters; those that are None are left out."""
    scalars: dict[str, Any] = {
        name: getattr(values, name, None) for name in _SCALARS
    }  # num_epochs becomes num_steps when filled in
    init = None
    if values.init is not None:
        init = tuning_pb2.PromptInit(
            method=INIT_METHODS.to_wire(values.init.method),
            text=values.init.text,
            source=source_to_wire(values.init.source_version),
        )
    return tuning_pb2.Hyperparameters(
        **scalars,
        init=init,
        reparameterisation=REPARAMETERISATIONS.to_wire(values.reparameterisation),
        schedule=SCHEDULES.to_wire(values.schedule),
        metric=METRICS.to_wire(values.metric),
        class_weights=values.class_weights,
    )
