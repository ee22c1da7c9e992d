"""Files and fine-tuning jobs through OpenAI's own client, trained by a real worker."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.softprompt.gateway.running import World

EXAMPLES: list[Any] = [
    {
        "messages": [
            {"role": "developer", "content": "Answer as the shop does."},
            {"role": "user", "content": [{"type": "text", "text": f"Where is parcel {number}?"}]},
            {"role": "assistant", "content": f"Parcel {number} is here.", "weight": 1},
        ]
    }
    for number in range(20)
]


def lines(examples: list[Any]) -> bytes:
    return b"".join(json.dumps(example).encode() + b"\n" for example in examples)


def uploaded(client: OpenAI, examples: list[Any], name: str = "mydata.jsonl") -> Any:
    return client.files.create(file=(name, io.BytesIO(lines(examples))), purpose="fine-tune")


def ended(client: OpenAI, id: str) -> Any:
    while (job := client.fine_tuning.jobs.retrieve(id)).status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.05)
    return job


def test_files_are_stored_listed_read_and_deleted(client: OpenAI) -> None:
    first, second = (uploaded(client, EXAMPLES[start:], f"from-{start}.jsonl") for start in (3, 4))
    assert (first.object, first.purpose, first.status, first.filename) == (
        "file", "fine-tune", "processed", "from-3.jsonl",
    )  # fmt: skip
    assert client.files.retrieve(first.id) == first
    content = client.files.content(first.id).read()
    assert len(content) == first.bytes
    stored = [json.loads(line) for line in content.splitlines()]
    assert len(stored) == 17
    assert stored[0]["messages"][0] == {"role": "system", "content": "Answer as the shop does."}
    again = uploaded(client, EXAMPLES[3:], "renamed.jsonl")
    assert (again.id, again.filename) == (first.id, "renamed.jsonl")

    ids = [file.id for file in client.files.list()]
    assert {first.id, second.id} <= set(ids)
    paged = [file.id for file in client.files.list(limit=1)]
    assert paged == ids, "the client follows the pages"
    assert [file.id for file in client.files.list(order="asc")] == ids[::-1]
    assert list(client.files.list(purpose="batch")) == []
    assert client.files.delete(first.id).deleted
    for missing in (first.id, "file-x", "file-" + "0" * 64):
        for call in (client.files.retrieve, client.files.delete, client.files.content):
            with pytest.raises(openai.NotFoundError):
                call(missing)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"{}\n", "line 1"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n', "line 1 messages"),
        (lines([*EXAMPLES[:2], {"messages": "x"}]), "line 3"),
        (b"not json\n", "line 1"),
        (b'{"prompt": "a", "completion": "\xff"}\n{"prompt": "a", "completion": "b"}\n', "UTF-8"),
        (b"\x1f\x8b\x08\x00rest", "compressed"),
        (b"PK\x03\x04rest", "compressed"),
        (
            lines([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"id": 1}]}]}]),
            "tool calls can't be learned",
        ),
    ],
)
def test_a_file_that_can_not_be_learned_is_refused_with_its_lines(client: OpenAI, content: bytes, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=("bad.jsonl", content), purpose="fine-tune")
    assert (error.value.param, error.value.code) == ("file", "invalid_file_format")
    assert text in error.value.message
    assert "/tmp" not in error.value.message


def test_forms_that_are_wrong(client: OpenAI, http: httpx.Client) -> None:
    good: Any = {"file": ("x.jsonl", lines(EXAMPLES))}
    files: Any
    for files, data, param in (
        (good, {"purpose": "batch"}, "purpose"),
        (good, {}, "purpose"),
        (good, {"purpose": "fine-tune", "more": "x"}, "more"),
        (good, {"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, "expires_after"),
        ({"other": good["file"]}, {"purpose": "fine-tune"}, "other"),
        ({"purpose": good["file"]}, {"file": "text"}, "purpose"),
        ([*good.items(), *good.items()], {"purpose": "fine-tune"}, "file"),
        ([*good.items(), *[("purpose", (None, b"fine-tune"))] * 2], {}, "purpose"),
    ):
        response = http.post("/v1/files", files=files, data=data)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    for kind, status in (
        ("application/json", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=x", 400),
        ("multipart/form-data; charset=nonsense; boundary=x", 400),
    ):
        response = http.post("/v1/files", content=b"--y\r\n\r\n\r\n--x--", headers={"content-type": kind})
        assert response.status_code == status, response.text


def test_the_examples_that_people_have_are_tuned_and_the_model_works_at_once(client: OpenAI) -> None:
    train, held_out = uploaded(client, EXAMPLES), uploaded(client, EXAMPLES[:6], "held-out.jsonl")
    job: Any = client.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=train.id,
        validation_file=held_out.id,
        suffix="parcels",
        seed=7,
        metadata={"team": "shop", "k" * 64: "v" * 512},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 2}},
        },
    )
    assert (job.object, job.training_file, job.validation_file) == ("fine_tuning.job", train.id, held_out.id)
    assert job.status in ("queued", "validating_files", "running")
    assert (job.user_provided_suffix, job.metadata) == ("parcels", {"team": "shop", "k" * 64: "v" * 512})
    assert job.method.supervised.hyperparameters.to_dict() == {
        "n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 2.0,
    }  # fmt: skip
    assert (job.seed, job.model, job.fine_tuned_model, job.finished_at) == (7, "tiny-llama", None, None)
    done = ended(client, job.id)
    assert (done.status, done.fine_tuned_model, done.error) == ("succeeded", "parcels@1", None)
    assert done.finished_at >= done.created_at
    assert done.trained_tokens > 0
    for model in (done.fine_tuned_model, "parcels"):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Where is parcel 3?"}], max_tokens=4
        )
        assert answer.model == "parcels@1"

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    numbers = [int(event.id.rpartition("-")[2]) for event in events]
    assert numbers == sorted(numbers, reverse=True), "newest first, over all pages"
    assert numbers[-1] == 1
    assert "its model is parcels@1" in events[0].message
    assert {event.type for event in events} == {"message", "metrics"}
    assert any("valid_loss" in (event.data or {}) for event in events)  # type: ignore[operator]
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == "parcels@1"
    assert checkpoint.metrics.full_valid_loss is not None

    more = client.fine_tuning.jobs.create(model="parcels@1", training_file=train.id, hyperparameters={"n_epochs": 1})
    assert ended(client, more.id).fine_tuned_model == "parcels@2"
    found = client.fine_tuning.jobs.list(limit=1, metadata={"team": "shop"})
    assert [one.id for one in found] == [job.id]
    assert [one.id for one in client.fine_tuning.jobs.list(limit=1)][:2] == [more.id, job.id]


def test_a_job_is_paused_resumed_and_cancelled(client: OpenAI) -> None:
    train = uploaded(client, EXAMPLES)
    job = client.fine_tuning.jobs.create(
        model="tiny-llama", training_file=train.id, hyperparameters={"n_epochs": 5000, "batch_size": "auto"}
    )
    assert job.to_dict()["user_provided_suffix"] is None
    while client.fine_tuning.jobs.retrieve(job.id).estimated_finish is None:
        time.sleep(0.02)
    client.fine_tuning.jobs.pause(job.id)
    while client.fine_tuning.jobs.retrieve(job.id).status != "paused":  # type: ignore[comparison-overlap]
        time.sleep(0.02)
    with pytest.raises(openai.BadRequestError, match=f"{train.id} is used by jobs .* not ended: {job.id}"):
        client.files.delete(train.id)
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running", "validating_files")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert ended(client, job.id).fine_tuned_model is None
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    nothing = client._client.post(f"{client.base_url}fine_tuning/jobs/{job.id}/cancel", content=iter([b""]))
    assert nothing.json()["status"] == "cancelled", "again, with an empty body in chunks"
    with pytest.raises(openai.BadRequestError, match=f"job '{job.id}' is CANCELLED and can't be paused"):
        client.fine_tuning.jobs.pause(job.id)
    for number in (0, 1 << 40):
        with pytest.raises(openai.BadRequestError, match="after: is not the id of an event"):
            client.fine_tuning.jobs.list_events(job.id, after=f"{job.id.replace('ftjob', 'ftevent')}-{number}")


def test_a_repeated_request_is_the_same_job(client: OpenAI) -> None:
    train = uploaded(client, EXAMPLES)
    headers = {"Idempotency-Key": "my-key-1"}
    jobs = [
        client.fine_tuning.jobs.create(model="tiny-llama", training_file=train.id, extra_headers=headers)
        for _ in range(2)
    ]
    assert jobs[0].id == jobs[1].id
    client.fine_tuning.jobs.cancel(jobs[0].id)
    with pytest.raises(openai.ConflictError, match="'my-key-1' was used before") as refused:
        client.fine_tuning.jobs.create(model="tiny-llama", training_file=train.id, seed=1, extra_headers=headers)
    assert refused.value.param == "Idempotency-Key"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "nothing"}, "model"),
        ({"model": "tone@9"}, "model"),
        ({"training_file": "file-abc"}, "training_file"),
        ({"training_file": "file-" + "1" * 64}, "training_file"),
        ({"validation_file": "file-" + "1" * 64}, "validation_file"),
        ({"suffix": "My Model"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 10**9}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e9}}, "hyperparameters.learning_rate_multiplier"),
        ({"validation_file": ""}, "validation_file"),
        ({"suffix": ""}, "suffix"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
    ],
)
def test_a_job_that_can_not_be_is_refused_by_name(client: OpenAI, change: dict[str, Any], param: str) -> None:
    train = uploaded(client, EXAMPLES)
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        client.fine_tuning.jobs.create(**{"model": "tiny-llama", "training_file": train.id, **change})
    assert (error.value.param or "").partition("[")[0] == param


def test_jobs_that_are_not_there(client: OpenAI, services: World) -> None:
    for id in ("ftjob-" + "0" * 26, "ftjob-X", "x"):
        jobs = client.fine_tuning.jobs
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError):
                call(id)
    refused = httpx.post(f"{services.url}/v1/fine_tuning/jobs/ftjob-x/cancel", json={"reason": "x"}, timeout=None)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reason")
    unknown = f"after=ftjob-{'z' * 26}"
    for query in (
        "limit=0",
        "limit=x",
        "limit=99999",
        "after=x",
        unknown,
        "nonsense=1",
        "limit=1&limit=2",
        "metadata=1",
    ):
        response = httpx.get(f"{services.url}/v1/fine_tuning/jobs?{query}", timeout=None)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == query.partition("=")[0]
