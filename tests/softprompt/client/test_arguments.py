"""Whatever a caller hands to a method of the client is taken or refused as InvalidInput naming the argument; nothing
raises a TypeError from the inside.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput, SoftPromptError
from shared.violations import items_of
from shared.wire.generation import write_sampling
from shared.wire.mirror import write
from softprompt import AsyncClient, BaseModelInfo, JobState, Message, RetrainingPlan, TuningSpec
from softprompt.client.arguments import checked
from softprompt.client.convert import input_message, usage_query
from softprompt.data.inputs import inputs_of
from softprompt.data.prepare import prepare
from softprompt.data.problems import Unusable
from softprompt.types.keywords import sampling_with
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB

USUAL: dict[str, Any] = {
    "spec": TuningSpec("tone", [{"input": "a", "output": "b"}]),
    "dataset": [{"input": "a", "output": "b"}],
    "document": "Be kind.",
    "input": "hi",
    "inputs": ["hi"],
    "prompt": "tone",
    "name": JOB,
    "version": "prompts/tone/versions/2",
    "alias": "default",
    "target": 1,
    "base_model": "tiny",
    "plan": RetrainingPlan(BaseModelInfo("tiny", "", "", "", 8, 8, 2, 64), None, ()),
}


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


JUNK: list[Any] = [
    5,
    -1,
    2**40,
    2**80,
    1.5,
    float("nan"),
    float("inf"),
    True,
    b"bytes",
    "half \ud83d",
    "a\0b",
    "",
    [],
    [5, None],
    {},
    {"a": {1: object()}},
    object(),
    Hostile(),
    np.float32(0.5),
    np.int64(3),
    np.array([1, 2]),
    print,
    (item for item in "ab"),
    None,
]


def arguments() -> Iterator[tuple[str, str]]:
    for name, method in inspect.getmembers(AsyncClient, inspect.isfunction):
        if not name.startswith("_"):
            for parameter in list(inspect.signature(method).parameters.values())[1:]:
                if parameter.name not in ("input", "inputs", "dataset") and parameter.kind is not parameter.VAR_KEYWORD:
                    yield name, parameter.name


async def first_result(made: Any) -> None:
    """Run a call, or take the first element of what it returned."""
    if inspect.isawaitable(made):
        await made
    elif isinstance(made, AsyncIterator):
        async for item in made:
            if isinstance(error := getattr(item, "error", None), Exception):  # one of many answers
                raise error
            break
        if close := getattr(made, "aclose", None):
            await close()


@pytest.mark.parametrize(("name", "parameter"), list(arguments()))
async def test_any_value_is_taken_or_refused(services: Services, tmp_path: Path, name: str, parameter: str) -> None:
    usual = {**USUAL, "directory": tmp_path / "export", "path": tmp_path}
    async with AsyncClient(services.trainer_endpoint, services.inference_endpoint, timeout_seconds=5) as client:
        method: Callable[..., Any] = getattr(client, name)
        required = {
            one.name: usual[one.name]
            for one in inspect.signature(method).parameters.values()
            if one.default is inspect.Parameter.empty and one.kind is not inspect.Parameter.VAR_KEYWORD
        }
        refused = 0
        for junk in JUNK:
            try:
                async with asyncio.timeout(
                    60 if name == "distill" else 0
                ):  # it reads files; others refuse before a wait
                    await first_result(method(**{**required, parameter: junk}))
            except InvalidInput as error:
                refused += 1
                field = error.violations[0].field
                assert field.startswith((parameter, "spec", "name", "input", "file", "target")), error  # noqa: PT017 (either outcome is fine)
            except (SoftPromptError, TimeoutError):
                continue
        assert refused >= 5


async def test_a_message_without_content_is_refused(services: Services) -> None:
    async with AsyncClient(services.trainer_endpoint, services.inference_endpoint) as client:
        nothing: Any = None
        with pytest.raises(InvalidInput, match=r"input\.messages\[1\]\.content: is missing"):
            await client.generate([Message("user", "a"), Message("assistant", nothing)])


async def test_a_list_has_no_more_than_its_limit(services: Services) -> None:
    async with AsyncClient(services.trainer_endpoint, services.inference_endpoint) as client:
        assert await client.list_jobs(limit=0) == []
        assert len(await client.list_jobs(limit=1)) == 1
        with pytest.raises(InvalidInput, match="limit: must be at least 0, is -1"):
            await client.list_jobs(limit=-1)


class Raises(Mapping[str, Any]):
    """A mapping that can't be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


def failing() -> Iterator[str]:
    yield "a"
    raise KeyError("gone")


def written(value: Any, name: str) -> Any:
    return write_sampling(sampling_with(None, {name: value}))


def message(value: Any, name: str) -> Any:
    return input_message(value, "", None, "", False)


def items(value: Any, name: str) -> list[Any]:
    return list(inputs_of(value))


def since(value: Any, name: str) -> Any:
    return usage_query((), value, None, "")


def texts(value: Any, name: str) -> Any:
    return checked(value, Sequence[str], name)


@pytest.mark.parametrize(
    ("read", "value", "name", "field"),
    [
        (texts, np.array(3), "labels", "labels[0]"),
        (texts, failing(), "labels", "labels[1]"),
        (message, np.array(3), "input", "input.messages[0]"),
        (message, ({"role": "user", "content": text} for text in failing()), "input", "input.messages[1]"),
        (message, [Raises()], "input", "input.messages[0]"),
        (items, failing(), "inputs", "inputs[1]"),
        (items, np.array(3), "inputs", "inputs[0]"),
        (written, np.complex64(1), "temperature", "sampling.temperature"),
        (written, True, "max_new_tokens", "sampling.max_new_tokens"),
        (written, failing(), "stop_sequences", "sampling.stop_sequences"),
        (written, Raises(), "logit_bias", "sampling.logit_bias"),
        (sampling_with, Raises(), {}, "sampling"),
        (written, Hostile(), "guide", "sampling.guide"),
        (since, pd.NaT, "start", "start"),
    ],
)
def test_values_that_raise_are_refused_by_their_place(read: Any, value: Any, name: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(value, name)
    assert refused.value.violations[0].field == field


def test_numpys_scalars_that_are_no_text_are_unusable_inputs() -> None:
    text, nothing, unreadable = inputs_of([np.int64(3), np.datetime64("NaT"), Raises()])
    assert text == "3"
    assert isinstance(nothing, Unusable)
    assert isinstance(unreadable, Unusable)
    assert "RuntimeError: no" in unreadable.reason


def test_a_timestamp_of_pandas_is_a_time() -> None:
    start = pd.Timestamp("2030-01-31")
    found = usage_query((), start, None, "").start_time
    assert found == start.to_pydatetime().astimezone()


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (2, float, 2.0),
        (np.str_("a"), str, "a"),
        (b"a/b", str | Path, Path("a/b")),
        (np.array(["a", "b"]), "Sequence[str]", ["a", "b"]),
        ("RUNNING", JobState, JobState.RUNNING),
    ],
)
def test_what_means_the_same_is_taken(value: Any, hint: Any, wanted: Any) -> None:
    hint = typing.Sequence[str] if hint == "Sequence[str]" else hint
    found = checked(value, hint, "x")
    assert (found, type(found)) == (wanted, type(wanted)) or (found == wanted and isinstance(found, str))


def test_a_list_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="labels: has more than 3 items; the iterator must end"):
        list(items_of(itertools.count(), "labels", most=3))
    assert list(items_of("abc", "labels", most=3)) == ["a", "b", "c"]
    numbers: Any = itertools.repeat(5)
    columns: Any = {"input": range(10**12), "output": range(10**12)}
    with pytest.raises(InvalidInput, match="reading ended after 100000 unusable examples"):
        prepare(numbers)
    with pytest.raises(InvalidInput, match="column 'input' has more than"):
        prepare(columns)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("prompt", 5, "5 does not fit: text is expected"),
        ("prompt", "a\ud800", "half a surrogate pair is at character 2"),
        ("annotations", {"a": 1}, "text is expected"),
        ("deadline", "2030-01-01", "a datetime is expected"),
        ("max_runtime_seconds", timedelta(1), "a number is expected"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_type_that_is_expected(field: str, value: Any, reason: str) -> None:
    spec = replace(TuningSpec("tone", "datasets/sha256-ab"), **{field: value})
    with pytest.raises(InvalidInput, match=rf"^spec\.{field}: .*{reason}"):
        write(spec, tuning_pb2.TuningSpec(), "spec")


def test_a_number_that_can_not_be_written_is_refused() -> None:
    turns: Any = [10**5000]
    with pytest.raises(InvalidInput, match="a value of type int does not fit"):
        input_message(turns, "tone", None, "", False)
