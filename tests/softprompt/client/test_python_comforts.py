"""What makes the Python client pleasant: keywords, dictionaries, many inputs, conversations, histories, HTML."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas
import polars
import pytest
from prompttuning.v1 import tuning_pb2

import softprompt
from shared.close_names import did_you_mean, nearest
from shared.errors import InvalidInput, NotFound, Overloaded, PreconditionFailed
from softprompt import AsyncClient, Client, Example, Guide, Message, Sampling, SamplingKeywords
from softprompt.types.keywords import sampling_with
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with Client(services.trainer_endpoint, services.inference_endpoint) as made:
        yield made


def test_keywords_are_exactly_the_sampling_parameters() -> None:
    hints = typing.get_type_hints(SamplingKeywords)
    own = {item.name: typing.get_type_hints(Sampling)[item.name] for item in dataclasses.fields(Sampling)}
    assert hints == {**own, "guide": Guide | Mapping[str, Any] | None}


def test_keywords_precede_the_values_of_sampling(client: Client, services: Services) -> None:
    client.generate("hi", sampling=Sampling(temperature=0.1, top_k=3), temperature=0.5)
    list(client.stream("hi", sampling={"top_p": 0.5}, max_new_tokens=7))
    sent, streamed = (request.sampling for request in services.inference.requests)
    assert (sent.temperature, sent.top_k) == (0.5, 3)
    assert (streamed.top_p, streamed.max_new_tokens) == (0.5, 7)
    assert not streamed.HasField("temperature")


def test_a_guide_may_be_a_dictionary(client: Client, services: Services) -> None:
    client.generate("hi", guide={"regex": "a+"})
    client.generate("hi", sampling={"guide": {"json_schema": {"type": "object"}}})
    sent = [request.sampling.guide for request in services.inference.requests]
    assert (sent[0].regex, sent[1].json_schema) == ("a+", '{"type": "object"}')
    with pytest.raises(InvalidInput, match=r"sampling\.guide\.regexp: is not a field of Guide; do you mean 'regex'"):
        list(client.generate_many(["hi"], guide={"regexp": "a"}))


def test_an_unknown_keyword_is_refused_with_the_one_that_is_meant(client: Client) -> None:
    calls: list[Callable[..., object]] = [client.generate, client.stream, client.generate_many]
    for call in calls:
        with pytest.raises(InvalidInput, match="max_tokens: is not a sampling parameter; do you mean 'max_new_tokens'"):
            call("hi", max_tokens=5)
    with pytest.raises(InvalidInput, match="the parameters are temperature, "):
        sampling_with(None, {"heat": 1})
    assert sampling_with({}, {}) is None


def test_near_names_are_found() -> None:
    assert nearest("suport-tone", ["support-tone", "other"]) == "support-tone"
    assert nearest("SUPPORT-TONE", ["support-tone"]) == "support-tone"
    assert nearest("sup", ["support-tone"]) == "support-tone"
    assert nearest("stop", ["top_p", "stop_sequences", "stop_token_ids"]) == "", "two may be meant, and top_p is none"
    assert did_you_mean("xyz", ["support-tone"]) == did_you_mean("", ["a"]) == ""


def test_turns_may_be_dictionaries(client: Client, services: Services) -> None:
    client.generate([{"role": "user", "content": "hi"}, Message("assistant", "ho")])
    turns = services.inference.requests[0].input.chat.messages
    assert [(turn.role, turn.content) for turn in turns] == [("user", "hi"), ("assistant", "ho")]
    for wrong, field in (({"role": "user"}, r"input.messages\[0\]"), ({"role": "user", "content": 7}, "content")):
        with pytest.raises(InvalidInput, match=field):
            client.generate([wrong])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "inputs",
    [
        ["a", "b", "c"],
        pandas.Series(["a", "b", "c"]),
        pandas.DataFrame({"id": [1, 2, 3], "text": ["a", "b", "c"]}),
        polars.DataFrame({"question": ["a", "b", "c"], "price": [1, 2, 3]}),
        [{"input": "a", "id": 1}, Example("b", output="x"), "c"],
        ("abc"[index] for index in range(3)),
    ],
    ids=["list", "series", "pandas", "polars", "mixed", "generator"],
)
def test_many_inputs_of_every_kind_keep_their_order(client: Client, services: Services, inputs: Any) -> None:
    found = list(client.generate_many(inputs, prompt="tone", concurrency=2, temperature=0.0))
    assert [(item.index, item.input, item.text) for item in found] == [
        (index, text, "Hello wide world") for index, text in enumerate("abc")
    ]
    assert sorted(request.input.text for request in services.inference.requests) == ["a", "b", "c"]
    assert all(request.input.prompt == "tone" for request in services.inference.requests)


def test_an_item_that_fails_has_its_error_and_the_others_their_answers(client: Client) -> None:
    found = list(client.generate_many(["a", "", {"input": ""}, {"x": 1, "y": 2}, b"bytes", "e"]))
    assert [item.error is None for item in found] == [True, False, False, False, False, True]
    with pytest.raises(InvalidInput, match="must not be empty"):
        _ = found[1].text
    assert "inputs[2].input: is empty" in str(found[2].error)
    assert "say which one holds the inputs" in str(found[3].error)


@pytest.mark.parametrize("wrong", ["one text", b"", {"input": "a"}, 7, None])
def test_what_is_no_list_of_inputs_is_refused(client: Client, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="a list of inputs"):
        client.generate_many(wrong)
    with pytest.raises(InvalidInput, match="concurrency"):
        client.generate_many(["a"], concurrency=0)


async def test_concurrency_is_bounded_and_inputs_are_taken_lazily(services: Services) -> None:
    services.inference.pieces = ["x"]
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(len(taken))
            yield f"{len(taken)}"

    async with AsyncClient(services.trainer_endpoint, services.inference_endpoint) as client:
        outcomes = client.generate_many(endless(), concurrency=2)
        assert [await anext(outcomes) for _ in range(3)][2].index == 2
        await outcomes.aclose()  # type: ignore[attr-defined]
    assert len(taken) <= 3 + 4 * 2


async def test_an_overloaded_service_is_asked_again() -> None:
    from softprompt.client.generation import in_order, patient

    left = [Overloaded("full", 0.001), Overloaded("full", 0.001)]

    async def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert [item async for item in in_order([1], lambda _: patient(call), 1)] == ["done"]
    for final in (Overloaded("quota", 3600), Overloaded("used up", 0.001, budget="monthly")):
        left.append(final)
        with pytest.raises(Overloaded):
            await patient(call)


def test_a_conversation_keeps_its_turns(client: Client, services: Services) -> None:
    chat = client.chat("tone", system="be kind", temperature=0.5)
    assert chat.send("one") == "Hello wide world"
    for delta in chat.stream("two"):
        assert delta.text == "Hello"
        break
    assert [turn.content for turn in chat.messages] == ["be kind", "one", "Hello wide world", "two", "Hello"]
    first, second = services.inference.requests
    assert [turn.role for turn in second.input.chat.messages] == ["system", "user", "assistant", "user"]
    assert (first.sampling.temperature, first.input.truncate) == (0.5, True)
    chat.reset()
    assert chat.messages == [Message("system", "be kind")]
    with pytest.raises(NotFound):
        client.chat("unknown").send("hi")


async def test_a_conversation_with_the_asynchronous_client(services: Services) -> None:
    async with AsyncClient(services.trainer_endpoint, services.inference_endpoint) as asynchronous:
        chat = asynchronous.chat()
        assert await chat.send("one") == "Hello wide world"
        assert len(chat.messages) == 2


def test_a_job_knows_its_history(client: Client) -> None:
    job = client.get_job(JOB)
    history = job.history()
    assert [point.step for point in history.points] == [1]
    assert history.evaluations[0].metrics == {"loss": 1.75}
    assert history.rows()[0] == {"step": 1, "loss": 2.5, "learning_rate": 0.0, "held_out_loss": 1.75}
    assert history.notes[0].text == "a worker was lost; the job goes on elsewhere"
    figure = job.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(InvalidInput, match="do you mean 'loss'"):
        job.plot("los")
    assert "<svg" in history._repr_html_()
    for copied in (copy.deepcopy(job), pickle.loads(pickle.dumps(job))):
        assert copied == job
        with pytest.raises(PreconditionFailed, match="job_history"):
            copied.history()


def test_html_is_escaped(client: Client, services: Services) -> None:
    job = services.trainer.jobs[JOB]
    job.result.verdict = "<script>alert('a & b')</script>"
    services.trainer.events[4].note = "<img src=x>"
    shown = client.get_job(JOB)._repr_html_() + client.get_job(JOB).history()._repr_html_()
    assert "&lt;script&gt;alert(&#x27;a &amp; b&#x27;)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    version = dataclasses.replace(client.get_version("tone@2"), labels=("<b>",))
    assert "&lt;b&gt;" in version._repr_html_()
    assert client.get_job(JOB)._repr_html_().startswith("<table><caption>tuningJobs/job1")


def test_a_new_job_has_an_empty_history(client: Client, services: Services) -> None:
    services.trainer.jobs[JOB] = tuning_pb2.TuningJob(name=JOB, state=tuning_pb2.TuningJob.STATE_QUEUED)
    job = client.get_job(JOB)
    assert job.history().rows() == []
    assert "queued" in job._repr_html_().lower()


def _named_types(hint: Any, found: set[type], seen: set[int]) -> None:
    if id(hint) in seen:
        return
    seen.add(id(hint))
    if isinstance(hint, type) and hint.__module__.startswith(("softprompt.", "shared.")):
        found.add(hint)
        if dataclasses.is_dataclass(hint):
            for child in typing.get_type_hints(hint).values():
                _named_types(child, found, seen)
        for child in hint.__subclasses__():
            if child.__module__.startswith("softprompt.types"):
                _named_types(child, found, seen)
    for part in typing.get_args(hint):
        for item in part if isinstance(part, list) else [part]:
            _named_types(item, found, seen)


def test_all_that_methods_and_callbacks_take_and_give_is_exported() -> None:
    found, seen = set[type](), set[int]()
    for client in (Client, AsyncClient):
        for _, method in inspect.getmembers(client, inspect.isfunction):
            if not method.__name__.startswith("_") or method.__name__ == "__init__":
                for hint in typing.get_type_hints(method).values():
                    _named_types(hint, found, seen)
    missing = {kind.__name__ for kind in found if kind.__name__ not in softprompt.__all__}
    assert missing - {kind.__name__ for kind in found if kind.__name__ in dir(softprompt.errors)} == set()
    assert {"ProgressMade", "TuningProgress", "StateChanged"} <= set(softprompt.__all__)
    assert set(softprompt.__all__) == set(dir(softprompt)), "notebooks complete the names"
