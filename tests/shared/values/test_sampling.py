"""A sampling parameter is declared once, and everything else has it."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
import typer
from prompttuning.v1 import common_pb2
from pydantic import BaseModel, ValidationError

from shared.errors import InvalidInput
from shared.prompt.manifest import SamplingDefaults
from shared.values.sampling import PARAMETERS, Sampling, SamplingParams
from shared.wire.sampling import read_sampling, write_sampling
from softprompt.cli.main import app


class Stored(BaseModel):
    defaults: SamplingDefaults = Sampling()


def some(name: str) -> Any:
    """A value within every range, different from the parameter's neutral value."""
    hint = str(typing.get_type_hints(Sampling)[name])
    return {"t": (3,), "b": True, "i": 7, "f": 0.7}[hint[0]] if "str" not in hint else ("END",)


ALL = Sampling(**{name: some(name) for name in PARAMETERS})


def test_message_value_and_command_line_have_the_same_parameters() -> None:
    command = typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]
    assert set(PARAMETERS) == set(common_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    assert set(PARAMETERS) == {item.name for item in dataclasses.fields(SamplingParams)}
    assert set(PARAMETERS) <= {parameter.name for parameter in command.params}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_survives_the_wire(name: str) -> None:
    sampling = Sampling(**{name: some(name)})
    message = write_sampling(sampling)
    assert [field.name for field, _ in message.ListFields()] == [name]
    assert read_sampling(message) == sampling


def test_every_parameter_is_checked_and_reaches_the_engine() -> None:
    complete = ALL.check().complete()
    assert all(getattr(complete, name) == some(name) for name in PARAMETERS)
    below: dict[str, Any] = {name: -10.0 for name, one in PARAMETERS.items() if one.low > -10 and "stop" not in name}
    low = Sampling(**below)
    with pytest.raises(InvalidInput) as caught:
        dataclasses.replace(low, ignore_eos=None).check("s")
    named = {violation.field.removeprefix("s.") for violation in caught.value.violations}
    assert named == set(PARAMETERS) - {"stop_sequences", "stop_token_ids", "ignore_eos"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_is_left_out_is_taken_from_the_defaults(name: str) -> None:
    assert Sampling().or_else(ALL) == ALL
    assert getattr(Sampling(**{name: some(name)}).or_else(Sampling()), name) == some(name)


def test_stored_defaults_keep_their_form() -> None:
    text = (
        '{"temperature":0.7,"top_k":0,"top_p":null,"min_p":null,"repetition_penalty":1.1,"max_new_tokens":5,'
        '"stop":["\\n"]}'
    )
    stored = Stored.model_validate_json(f'{{"defaults":{text}}}')
    assert stored.defaults == Sampling(
        temperature=0.7, top_k=0, repetition_penalty=1.1, max_new_tokens=5, stop_sequences=("\n",)
    )
    assert json.loads(stored.model_dump_json())["defaults"] == json.loads(text)
    assert Stored.model_validate(stored.model_dump()) == stored


@pytest.mark.parametrize(
    "text", ['{"seed": 1}', '{"heat": 1}', '{"temperature": 11}', '{"top_p": NaN}', '{"stop": [""]}']
)
def test_stored_defaults_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="defaults"):
        Stored.model_validate_json(f'{{"defaults": {text}}}')
