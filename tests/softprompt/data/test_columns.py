"""Columns by their names, by the caller's choice, and the forms that other systems write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.values.example import Example
from shared.values.message import Message
from softprompt import Data
from softprompt.data.inputs import input_columns, input_of, inputs_of
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import examples_of

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt and completion": ({"prompt": "a", "completion": "b"}, {"input": "a", "output": "b"}),
    "question and answer": ({"Question": "a", " ANSWER ": "b"}, {"input": "a", "output": "b"}),
    "text and label": ({"text": "a", "label": 1}, {"input": "a", "label": "1"}),
    "Alpaca": ({"instruction": "do", "input": "this", "output": "x"}, {"input": "do\n\nthis", "output": "x"}),
    "Dolly": ({"instruction": "do", "context": "this", "response": "x"}, {"input": "do\n\nthis", "output": "x"}),
    "Dolly without context": ({"instruction": "do", "context": None, "response": "x"}, {"input": "do", "output": "x"}),
    "Alpaca without input": ({"instruction": "do", "input": "", "output": "x"}, {"input": "do", "output": "x"}),
    "instruction and response": ({"instruction": "do", "response": "x"}, {"input": "do", "output": "x"}),
    "TRL's turns": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, {"messages": TURNS}),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": TURNS},
    ),
    "ShareGPT with system": (
        {"system": "be", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "system", "content": "be"}, *TURNS]},
    ),
    "OpenAI's developer": (
        {"messages": [{"role": "developer", "content": "be"}, *TURNS]},
        {"messages": [{"role": "system", "content": "be"}, *TURNS]},
    ),
    "OpenAI's parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                TURNS[1],
            ]
        },
        {"messages": [{"role": "user", "content": "q\nr"}, TURNS[1]]},
    ),
    "OpenAI's weight": (
        {"messages": [*TURNS[:1], TURNS[1] | {"weight": 1}, TURNS[0], TURNS[1] | {"weight": 0}]},
        {"messages": TURNS},
    ),
    "nulls of a union": ({"input": "a", "output": "b", "label": None, "messages": None}, {"input": "a", "output": "b"}),
    "messages in a cell": (
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        {"messages": TURNS},
    ),
    "messages and a system message in cells": (
        {"messages": json.dumps(TURNS), "system": "be"},
        {"messages": [{"role": "system", "content": "be"}, *TURNS]},
    ),
    "ShareGPT with an empty system": ({"system": " ", "conversations": TURNS}, {"messages": TURNS}),
    "nulls of a union of turns": (
        {"messages": [{"role": None, "from": "human", "content": None, "value": "q"}, TURNS[1] | {"from": None}]},
        {"messages": TURNS},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_forms_of_other_systems_are_read(name: str) -> None:
    given, wanted = LAYOUTS[name]
    assert examples_of(prepare([given])) == [wanted]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_is_asked_for_what_training_learned_to_answer(name: str) -> None:
    given, wanted = LAYOUTS[name]
    learned = wanted["messages"][:-1] if "messages" in wanted else wanted["input"]
    assert list(inputs_of([given])) == [learned]
    assert input_of(given | {"id": 7}, input_columns([*given, "id"])) == learned, "beside other columns"


ASKED: dict[str, tuple[Any, Any]] = {
    "an example": (Example(messages=tuple(Message(**turn) for turn in TURNS)), (Message("user", "q"),)),
    "a question after an answer": ({"messages": [*TURNS[:1], TURNS[1] | {"weight": 1}, TURNS[0]]}, [*TURNS, TURNS[0]]),
    "a beginning of the answer in TRL's prompt": ({"prompt": TURNS}, TURNS),
    "an instruction beside a label": ({"instruction": "do", "input": "this", "label": "x"}, "this"),
    "a column without a name": ({"": 0, "text": "hello"}, "hello"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_not_the_answer_to_learn_is_asked(name: str) -> None:
    given, wanted = ASKED[name]
    assert list(inputs_of([given])) == [wanted]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]]},
        "messages[0].content: has a part that",
    ),
    "a call of a tool": (
        {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"id": 1}]}]},
        "tool calls can't be learned",
    ),
    "a role of a tool": (
        {"messages": [{"role": "tool", "content": "x"}, TURNS[1]]},
        "messages[0].role: must be one of system, user",
    ),
    "no answer": ({"messages": TURNS[:1]}, "must end with the assistant's message"),
    "a name": ({"messages": [TURNS[0] | {"name": "Ann"}, TURNS[1]]}, "has 'name' beside role and content"),
    "a weight of an earlier turn": (
        {"messages": [TURNS[0], TURNS[1] | {"weight": "yes"}, TURNS[0], TURNS[1] | {"weight": 1}]},
        r"messages[1].weight: must be 0 or 1",
    ),
    "a weight": ({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]}, "weight: must be 0 or 1"),
    "a context": ({"question": "a", "context": "b", "answer": "c"}, "'context' is not used"),
    "no target": ({"input": "a"}, "an example needs an input and an output or a label, or messages"),
    "two targets": (
        {"prompt": "a", "completion": "b", "label": True},
        "say which is the target, the output 'completion' or the label 'label'",
    ),
    "two outputs beside a label": (
        {"question": "a", "answer": "b", "response": "c", "label": "d"},
        "say which is the target, the output 'answer' or 'response' or the label 'label'",
    ),
    "an output beside two labels": (
        {"question": "a", "answer": "b", "class": "c", "category": "d"},
        "say which is the target, the output 'answer' or the label 'class' or 'category'",
    ),
    "a row for each message": (
        {"message_id": "1", "text": "a", "role": "prompter", "lang": "en"},
        'a message is no example; put its conversation into "messages"',
    ),
    "two inputs": ({"prompt": "a", "question": "b", "answer": "c"}, "say which is the input"),
    "a column that is mapped twice": (
        {"frage": "a", "fragen": "b"},
        "input = 'fragen', output = 'fragen': name a column for one of them",
    ),
    "messages that are mapped beside an input": ({"messages": "[]", "fragen": "a"}, "and messages alone"),
    "a mapped column that is not there": ({"frage": "a", "antwort": "b"}, "and no 'fragen'; do you mean 'frage'?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str) -> None:
    row, reason = REFUSED[name]
    how = Data([row])
    if "mapped" in name:
        target = (
            {"messages": "messages"} if "messages" in row else {"output": "fragen" if "twice" in name else "antwort"}
        )
        how = Data([row], input="fragen", drop_extra="not there" not in name, **target)
    with pytest.raises(UnusableData) as refused:
        prepare(how)
    assert reason in str(refused.value)
    assert len(refused.value.violations) == 1


def test_columns_are_chosen_and_extra_ones_dropped_and_counted() -> None:
    rows = [
        {"id": 1, "review": "good", "stars": 5},
        {"id": 2, "review": "bad", "stars": 1},
        {"id": None, "review": "so-so", "stars": 3},
    ]
    with pytest.raises(UnusableData) as refused:
        prepare(rows)  # type: ignore[arg-type]
    assert refused.value.fix == {"--input": "review", "--label": "stars", "--drop-extra": ""}
    assert "id=1, review='good', stars=5" in str(refused.value)
    prepared = prepare(Data(rows, input="review", label="stars", drop_extra=True))
    assert examples_of(prepared)[0] == {"input": "good", "label": "5"}
    assert "dropped: id (2 values)" in prepared.report
    alpaca = [{"instruction": "do", "input": "this", "output": "x", "kind": "y"}]
    assert examples_of(prepare(Data(alpaca, label="kind", drop_extra=True))) == [{"input": "this", "label": "y"}]
    named = [{"messages": [TURNS[0] | {"name": "Ann"}, TURNS[1]]}]
    assert "dropped: name of a turn (1 values)" in prepare(Data(named, drop_extra=True)).report


GUESSES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a helpdesk": (
        {
            "Ticket ID": "T-17",
            "Created": "5.3.2026",
            "Customer": "Ann Lee",
            "Request": "it is late",
            "Reply": "we " * 9,
        },
        {"--input": "Request", "--output": "Reply", "--drop-extra": ""},
    ),
    "codes without a telling name": (
        {"case": "INC-0012", "review": "nice and warm", "mood": "good", "who": "ann@example.com"},
        {"--input": "review", "--label": "mood", "--drop-extra": ""},
    ),
    "records at both ends": (
        {"orderNo": 7, "review": "nice", "stars": 5, "e-mail": "none", "updatedAt": "yesterday"},
        {"--input": "review", "--label": "stars", "--drop-extra": ""},
    ),
    "what a person wrote": (
        {"customer": "where is my parcel, please?", "agent": "it comes on Monday, we promise"},
        {"--input": "customer", "--output": "agent"},
    ),
    "a priority": ({"text": "down", "id": 1, "priority": "P1"}, {"--label": "priority", "--drop-extra": ""}),
    "a short reply": ({"Request": "is it late again?", "Reply": "No."}, {"--input": "Request", "--output": "Reply"}),
    "a short answer of two words": (
        {"Request": "is it late?", "finalAnswer": "Yes"},
        {"--input": "Request", "--output": "finalAnswer"},
    ),
    "a kind of reply": (
        {"Request": "is it late?", "reply_type": "no"},
        {"--input": "Request", "--label": "reply_type"},
    ),
    "a known input and a record": ({"text": "down", "ticket": "T-1001", "date": "2026-03-05T10:11"}, {}),
    "lists and objects": ({"title": "Rain in May", "paragraphs": [{"context": "It rained."}]}, {}),
    "an answer in an object": ({"question": "who?", "context": "me", "answers": {"text": ["a"]}}, {}),
    "a message": ({"role": "user", "content": "a"}, {}),
    "good and bad answers": ({"prompt": "a", "completion": "b", "label": True}, {}),
    "a request of a batch": ({"custom_id": "a-1", "method": "POST", "body": {"messages": []}}, {}),
    "nothing but records": ({"id": 1, "phone": "+49 30 1234567", "at": "10:30 AM", "page": "www.example.com"}, {}),
}


@pytest.mark.parametrize("name", GUESSES)
def test_the_fix_never_names_a_column_that_describes_the_record(name: str) -> None:
    row, fix = GUESSES[name]
    with pytest.raises(UnusableData) as refused:
        prepare([row])
    assert refused.value.fix == fix


def test_conversations_without_a_message_to_learn_are_left_out_and_counted() -> None:
    none = {"messages": [TURNS[0], TURNS[1] | {"weight": 0}]}
    prepared = prepare([none, {"messages": TURNS}])
    assert examples_of(prepared) == [{"messages": TURNS}]
    assert "conversations dropped because no message has weight 1: 1" in prepared.report


def test_a_label_that_is_probably_meant_is_named() -> None:
    for given, said in (
        ("positive", "'positive' is not one of the allowed labels; do you mean 'Positive'?"),
        ("cafe\u0301", r"'cafe\u0301' is not one of the allowed labels; do you mean 'caf\xe9'?"),
        ("1.0", "'1.0' is not one of the allowed labels; do you mean '1'?"),
        ("other", "'other' is not one of the allowed labels"),
    ):
        with pytest.raises(UnusableData) as refused:
            prepare([{"text": "a", "label": given}], ["Positive", "caf\xe9", "1"])
        assert str(refused.value) == f"dataset[0].label: {said}"


def test_the_role_of_a_turn_is_read_before_its_other_keys() -> None:
    turns = [TURNS[0], {"role": "tool", "tool_call_id": "1", "name": "f", "content": "x"}, TURNS[1]]
    with pytest.raises(UnusableData, match=r"messages\[1\]\.role: must be one of system, user, assistant, not 'tool'"):
        prepare([{"messages": turns}])


def test_labels_outside_the_set_are_one_message_and_a_comma_is_explained() -> None:
    rows = [{"text": "a", "label": "No"}, *[{"text": "b", "label": " Yes, please"}] * 5]
    assert prepare(rows, ("Yes, please", "No")).num_examples == 6
    with pytest.raises(UnusableData) as refused:
        prepare(rows, ("Yes", "please", "No"))
    assert (
        str(refused.value)
        == "dataset[1].label: 'Yes, please' is not one of the allowed labels (also [2], [3] and 2 more)"
    )
    assert refused.value.advice == "a label with a comma is put in quotes: --labels '\"Yes, please\",...'"
