"""The page's endpoints with what no page sends, and with data whose form a page can't know."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from typing import Any

import httpx
import pytest

from shared.values.hyperparameters import Hyperparameters
from shared.values.spec import TuningSpec
from softprompt import Client
from softprompt.gateway.files import file_id
from tests.softprompt.gateway.running import World


def posted(http: httpx.Client, path: str, content: bytes, **query: str) -> httpx.Response:
    return http.post(path, params=query, content=content)


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)  # without the time, which names of tests must not contain
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "query", "status", "said"),
    [
        (b"PK\x03\x04 no archive", {"filename": "a.xlsx"}, 400, "the sheet is damaged"),
        (archive(x=b"1"), {"filename": "a.xlsx"}, 400, "is a zip archive"),
        (b"\x1f\x8b\x08 gzip", {"filename": "a.csv"}, 400, "softprompt datasets upload"),
        (b"PAR1", {"filename": "a.parquet"}, 400, "softprompt datasets upload"),
        (b"a,b\n1,2\n", {}, 400, "the name of the file is missing"),
        (b"a,b\n1,2\n", {"filename": "../.."}, 400, "the name of the file is missing"),
        (b"input,output\n1,2\n", {"filename": "a\0b.csv"}, 200, ""),
        (b"input,output\n1,2\n", {"filename": "é" * 300 + ".csv"}, 200, ""),
        (b"input,output\n1,2\n", {"filename": "C:\\data\\a.csv"}, 200, ""),
        (b"", {"filename": "a.csv"}, 400, "is empty"),
        (b"\xff\xfe\x00", {"filename": "a.csv"}, 400, "is damaged or cut off"),
    ],
    ids=str,
)
def test_a_preview_is_an_answer_or_a_clear_error(
    http: httpx.Client, content: bytes, query: dict[str, str], status: int, said: str
) -> None:
    response = posted(http, "/api/preview", content, **query)
    assert response.status_code == status, response.text
    assert said in response.text


def test_columns_are_guessed_and_the_guess_can_be_used(http: httpx.Client) -> None:
    sheet = b"Ticket ID,E-Mail,Message,Reply\nT-1,a@b.com,where is it,it comes on Monday morning\n"
    found = posted(http, "/api/preview", sheet, filename="tickets.csv").json()
    assert found["guess"] == {"input": "Message", "output": "Reply", "drop_extra": "true"}
    again = posted(http, "/api/preview", sheet, filename="tickets.csv", **found["guess"]).json()
    assert (again["num_examples"], again["guess"], again["problems"]) == (1, {}, [])
    unknown = posted(http, "/api/preview", b"id,date\n1,2026-03-05\n", filename="a.csv").json()
    assert (unknown["guess"], len(unknown["problems"])) == ({}, 1)


def test_an_archive_that_unpacks_to_too_much_is_refused(http: httpx.Client) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as file:
        file.writestr("sheet", b"")
        file.filelist[0].file_size = 600 << 20  # to compress as much would take seconds
    response = posted(http, "/api/preview", bomb.getvalue(), filename="a.xlsx")
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1.5", "²", "x"])
@pytest.mark.parametrize("path", ["/api/jobs?filename=a.csv&prompt=p&num_steps=", "/api/jobs/none/events?after="])
def test_a_number_that_is_none_is_named(http: httpx.Client, path: str, number: str) -> None:
    method = "GET" if "after" in path else "POST"
    response = http.request(method, path + number, content=b"input,output\n1,2\n")
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("num_steps", "after")


def tuned(services: World, http: httpx.Client, rows: list[dict[str, Any]], prompt: str) -> str:
    """The id of a finished job. The file has no line break at its end."""
    content = "\n".join(map(json.dumps, rows)).encode()
    made = posted(http, "/api/jobs", content, filename="a.jsonl", prompt=prompt, num_steps="4")
    assert made.status_code == 201, made.text
    return finished(http, made.json())


def finished(http: httpx.Client, job: dict[str, Any]) -> str:
    id = str(job["name"].partition("/")[2])
    with http.stream("GET", f"/api/jobs/{id}/events") as events:
        for _ in events.iter_lines():
            pass
    assert http.get(f"/api/jobs/{id}").json()["state"] == "SUCCEEDED"
    return id


PAIRS = [{"input": f"question {index}", "output": f"answer {index}"} for index in range(30)]
CHATS = [
    {"messages": [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]}
    for row in PAIRS
]


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["pairs", "chats"])
def test_corrected_answers_are_trained_on_and_no_longer_held_out(
    services: World, http: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    prompt = f"corrected-{'chats' if rows is CHATS else 'pairs'}"
    first = tuned(services, http, rows, prompt)
    report = http.get(f"/api/jobs/{first}/report").json()
    shown = report["answers"][0]
    held_out = {answer["line"] for answer in report["answers"]}
    assert len(held_out) > 1
    corrections = {"examples": [{"line": shown["line"], "text": "better"}]}
    again = http.post(f"/api/jobs/{first}/continue", json=corrections)
    assert again.status_code == 201, again.text
    second = http.get(f"/api/jobs/{finished(http, again.json())}").json()
    statistics = second["dataset_statistics"]
    assert (statistics["num_train"], statistics["num_validation"]) == (
        len(rows) - len(held_out) + 1,
        len(held_out) - 1,
    )
    lineage = http.get(f"/api/jobs/{second['name'].partition('/')[2]}/report").json()["lineage"]
    train, left = (
        [json.loads(line) for line in http.get(f"/v1/files/{file_id(lineage[part])}/content").text.splitlines()]
        for part in ("dataset", "validation_dataset")
    )
    corrected = json.loads(json.dumps(rows[shown["line"] - 1]).replace(f"answer {shown['line'] - 1}", "better"))
    assert corrected in train
    assert left == [rows[line - 1] for line in sorted(held_out - {shown["line"]})]
    assert train == [
        corrected if number == shown["line"] else row
        for number, row in enumerate(rows, 1)
        if number not in held_out or number == shown["line"]
    ]
    last = {"examples": [{"line": line, "text": "x"} for line in held_out]}
    for refused in ({"examples": [{"line": 99, "text": "x"}]}, last):
        assert http.post(f"/api/jobs/{first}/continue", json=refused).status_code == 400

    third = http.get(f"/api/jobs/{second['name'].partition('/')[2]}/report").json()["answers"]
    if len(third) > 1:  # corrections of a job whose held-out part is a separate dataset
        more = {"examples": [{"line": third[0]["line"], "text": "best"}]}
        again = http.post(f"/api/jobs/{second['name'].partition('/')[2]}/continue", json=more)
        statistics = http.get(f"/api/jobs/{finished(http, again.json())}").json()["dataset_statistics"]
        assert (statistics["num_train"], statistics["num_validation"]) == (len(train) + 1, len(left) - 1)


def test_a_correction_holds_for_every_example_of_its_input_and_the_rest_stays_held_out(
    services: World, http: httpx.Client
) -> None:
    rows = [{"input": f"question {index % 12}" + " " * (index % 2), "output": f"answer {index}"} for index in range(48)]
    patient = Hyperparameters(num_steps=2, early_stop_patience=5)  # other examples choose than those of the report
    spec = TuningSpec(prompt="repeated", dataset=rows, validation_fraction=0.5, hyperparameters=patient)
    with Client(trainer=f"127.0.0.1:{services.trainer.port}") as client:
        id = finished(http, {"name": client.create_job(spec).name})
    report = http.get(f"/api/jobs/{id}/report").json()
    shown = {answer["line"]: answer for answer in report["answers"]}
    held_out = {*shown, *report["other_held_out_lines"]}
    assert len(held_out) == report["job"]["dataset_statistics"]["num_validation"] > len(shown)
    line, twin = [line for line in shown if shown[line]["input"].strip() == shown[min(shown)]["input"].strip()][:2]

    two = {"examples": [{"line": line, "text": "better"}, {"line": twin, "text": "best"}]}
    refused = http.post(f"/api/jobs/{id}/continue", json=two)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "examples")
    again = http.post(f"/api/jobs/{id}/continue", json={"examples": [{"line": line, "text": "better"}]})
    lineage = http.get(f"/api/jobs/{finished(http, again.json())}/report").json()["lineage"]
    train, left = (
        [json.loads(row) for row in http.get(f"/v1/files/{file_id(lineage[part])}/content").text.splitlines()]
        for part in ("dataset", "validation_dataset")
    )
    same = {number for number, row in enumerate(rows, 1) if row["input"].strip() == shown[line]["input"].strip()}
    assert {row["output"] for row in train if row["input"].strip() == shown[line]["input"].strip()} == {"better"}
    assert left == [rows[number - 1] for number in sorted(held_out - same)]
    assert len(train) == len(rows) - len(left)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(services: World) -> None:
    head = "POST /api/preview?filename=a.csv HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 300000000\r\n"
    with socket.create_connection(("127.0.0.1", services.gateway.port)) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the file has more than 256 MiB; a part of its rows is enough" in answer


def test_a_distilled_prompt_is_not_corrected(services: World, http: httpx.Client) -> None:
    short: Any = {"num_steps": 2}
    with Client(f"127.0.0.1:{services.trainer.port}", f"127.0.0.1:{services.replica.port}") as client:
        job = client.distill("Be kind. " * 9, "studied", num_questions=12, max_answer_tokens=4, hyperparameters=short)
    id = job.name.partition("/")[2]
    line = http.get(f"/api/jobs/{id}/report").json()["answers"][0]["line"]
    refused = http.post(f"/api/jobs/{id}/continue", json={"examples": [{"line": line, "text": "better"}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "failed_precondition")
    assert "distill it again" in refused.text


def test_actions_and_parameters_that_do_not_exist_are_refused(http: httpx.Client) -> None:
    assert http.post("/api/jobs/none/explode").status_code == 404
    assert http.get("/api/jobs?limit=-1").json()["error"]["param"] == "limit"
    assert http.post("/api/jobs/none/continue", json={"examples": []}).status_code == 400
    for version in (0, True, "1"):
        refused = http.post("/api/prompts/tone/aliases/default", json={"targets": [{"version": version}]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "targets[0].version")
