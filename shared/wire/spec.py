"""The `TuningSpec` message as `TuningSpec`, and back: where its examples come from has another shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput
from shared.names import DEFAULT_ALIAS
from shared.values.example import Example
from shared.values.hyperparameters import Init
from shared.values.message import Message
from shared.values.spec import PublishPolicy, TuningSpec, is_uri
from shared.violations import Violations
from shared.wire.mirror import fill, read, read_fields, reader, write_fields, writer

_DATA_FIELDS = frozenset({"dataset", "validation_dataset", "validation_fraction"})


@reader(TuningSpec)
def read_spec(message: tuning_pb2.TuningSpec, path: str = "spec", violations: Violations | None = None) -> TuningSpec:
    """The spec. Its datasets are names, URIs ("...://...") or tuples of examples."""
    values = read_fields(TuningSpec, message, path, violations)
    for name in ("dataset", "validation_dataset"):
        found = message.HasField(name) or name == "dataset"
        values[name] = _read_source(getattr(message, name), f"{path}.{name}", violations) if found else None
    return TuningSpec(**values)


def read_checked_spec(message: tuning_pb2.TuningSpec) -> TuningSpec:
    """The spec of a request. Raises InvalidInput with everything that is wrong with its form."""
    violations = Violations()
    spec = read_spec(message, "spec", violations)
    spec.check("spec", violations)
    violations.raise_if_any()
    return spec


@reader(Init)
def read_init(message: tuning_pb2.PromptInit, path: str = "init", violations: Violations | None = None) -> Init:
    """The init; a text or a source alone implies the method."""
    init = Init(**read_fields(Init, message, path, violations))
    return replace(init, method=init.chosen_method)


@reader(PublishPolicy)
def read_policy(
    message: tuning_pb2.PublishPolicy, path: str = "publish", violations: Violations | None = None
) -> PublishPolicy:
    """The policy; an empty alias is the default one."""
    policy = PublishPolicy(**read_fields(PublishPolicy, message, path, violations))
    return replace(policy, alias=policy.alias or DEFAULT_ALIAS)


@writer(TuningSpec)
def write_spec(spec: TuningSpec, message: tuning_pb2.TuningSpec, path: str = "spec") -> None:
    """Writes a spec whose datasets are names or URIs. Raises InvalidInput."""
    write_fields(spec, message, path, skip=_DATA_FIELDS)
    _write_source(message.dataset, spec.dataset)
    if spec.validation_dataset and spec.validation_fraction is not None:
        raise InvalidInput.of(f"{path}.validation_fraction", f"can't be combined with {path}.validation_dataset")
    if spec.validation_dataset:
        _write_source(message.validation_dataset, spec.validation_dataset)
    fill(message, path, validation_fraction=spec.validation_fraction)


@reader(Example)
def read_example(message: tuning_pb2.Example, path: str = "example", violations: Violations | None = None) -> Example:
    """The example. One without a target, or with an input beside a conversation, is a violation."""
    values: dict[str, Any] = {}
    match target := message.WhichOneof("target"):
        case "output" | "label":
            values[target] = getattr(message, target)
        case "conversation":
            values["messages"] = tuple(read(Message, turn) for turn in message.conversation.messages)
            if message.input and violations is not None:
                violations.add(f"{path}.input", "must be empty beside a conversation")
        case _:
            if violations is not None:
                violations.add(f"{path}.target", "is missing: give output, label or conversation")
    return Example(input=message.input, **values)


def _read_source(
    message: tuning_pb2.DatasetSource, path: str, violations: Violations | None
) -> str | tuple[Example, ...]:
    kind = message.WhichOneof("source")
    if kind == "inline":
        field, examples = f"{path}.inline.examples", message.inline.examples
        if not examples and violations is not None:
            violations.add(field, "is empty: at least two examples are needed")
        return tuple(read_example(one, f"{field}[{index}]", violations) for index, one in enumerate(examples))
    if violations is not None:
        if kind is None:
            violations.add(path, "is missing: give inline examples, an uploaded dataset, or a URI")
        elif is_uri(message.dataset):
            violations.add(f"{path}.dataset", "must be the name of an uploaded dataset; a URI goes into uri")
        elif kind == "uri" and not is_uri(message.uri):
            text = f"{message.uri[:200]!r} must look like file:///folder/file.jsonl"
            violations.add(f"{path}.uri", text)
    return message.uri or message.dataset


def _write_source(message: tuning_pb2.DatasetSource, dataset: str) -> None:
    if is_uri(dataset):
        message.uri = dataset
    else:
        message.dataset = dataset
