"""Messages that tuning and prompts both use: base model, template, sampling defaults."""

from __future__ import annotations

from prompttuning.v1 import common_pb2

from shared.caller import current_caller
from shared.model.base_model import BaseModelInfo
from shared.names import DEFAULT_ALIAS
from shared.prompt.manifest import SamplingDefaults
from shared.rpc.templates import template_options
from shared.security.methods import prompt_of
from shared.text.template import INPUT_FIELD, Template
from trainer_service.convert.enums import TEMPLATE_FORMATS
from trainer_service.convert.fields import build, present, short_float
from trainer_service.violations import Violations

NO_ALIAS = "-"
"""How a caller writes that no alias is to be moved; an empty string means the default alias."""
JOB_PREFIX = "tuningJobs/"
_SAMPLING_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
_SAMPLING_INTEGERS = ("top_k", "max_new_tokens")
_PER_REQUEST_ONLY = ("presence_penalty", "frequency_penalty", "seed", "min_new_tokens", "ignore_eos", "num_logprobs")


def alias_from_wire(alias: str) -> str:
    """The trainer's own way: an empty string where no alias is to be moved."""
    return "" if alias == NO_ALIAS else alias or DEFAULT_ALIAS


def source_to_wire(source: str) -> str:
    """What a prompt was started from; nothing if that is another prompt, which the caller may not name. A job's id
    names no prompt.
    """
    return source if source.startswith(JOB_PREFIX) or current_caller().may_use(prompt_of(source)) else ""


def base_model_to_wire(info: BaseModelInfo) -> common_pb2.BaseModel:
    return common_pb2.BaseModel(**info.model_dump())


def template_to_wire(template: Template) -> common_pb2.Template:
    message = common_pb2.Template(
        text=template.text,
        format=TEMPLATE_FORMATS.to_wire(template.format),
        system=template.system,
        system_override=template.system_override,
        date=template.date,
    )
    if template.arguments:
        message.arguments.update(template.arguments)
    return message


def template_from_wire(message: common_pb2.Template, field: str, violations: Violations) -> Template | None:
    """A template whose `format` is unset (see `model_fields_set`) where the caller left the choice to the service."""
    format = TEMPLATE_FORMATS.from_wire(message.format, f"{field}.format", violations)
    values: dict[str, object] = {"text": message.text or INPUT_FIELD, **template_options(message)}
    return build(Template, values if format is None else {**values, "format": format}, field, {}, violations)


def sampling_to_wire(defaults: SamplingDefaults) -> common_pb2.SamplingParams:
    values = {name: getattr(defaults, name) for name in (*_SAMPLING_FLOATS, *_SAMPLING_INTEGERS)}
    return common_pb2.SamplingParams(**values, stop_sequences=defaults.stop)


def sampling_from_wire(message: common_pb2.SamplingParams, field: str, violations: Violations) -> SamplingDefaults:
    for name in present(message, _PER_REQUEST_ONLY):
        violations.add(f"{field}.{name}", "can only be set on a request, not as a prompt's default")
    if message.stop_token_ids:
        violations.add(f"{field}.stop_token_ids", "can only be set on a request, not as a prompt's default")
    if "" in message.stop_sequences:
        violations.add(f"{field}.stop_sequences[{list(message.stop_sequences).index('')}]", "must not be empty")
    values = present(message, _SAMPLING_INTEGERS)
    values |= {name: short_float(value) for name, value in present(message, _SAMPLING_FLOATS).items()}
    values["stop"] = tuple(message.stop_sequences)
    return build(SamplingDefaults, values, field, {"stop": "stop_sequences"}, violations) or SamplingDefaults()
