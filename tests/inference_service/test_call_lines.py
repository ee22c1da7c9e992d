"""The log line of each call: request id, caller, prompt as it was asked for, the version that answered, trace."""

from __future__ import annotations

from pathlib import Path

from prompttuning.v1 import generation_pb2

from shared.errors import NotFound
from tests.inference_service.replica import (
    Replica,
    blob,
    generate_request,
    matrix,
    publish,
    refusal,
    stream_request,
)
from tests.log_lines import log_lines
from tests.waiting import until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = (("x-request-id", "r-1"), ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"))


async def test_a_calls_line_names_the_version_that_answered(replica: Replica, tiny_model_dir: Path) -> None:
    record = publish(replica.store, blob(tiny_model_dir, matrix(1, 10), labels=("red", "green")))
    scoring = generation_pb2.ScoreRequest(input=generation_pb2.GenerationInput(prompt="tone", text="hello"))
    with log_lines("shared.rpc.interceptors", "call") as lines:
        await replica.stub.Generate(generate_request("hello", "tone@default"), metadata=METADATA)
        async for _ in replica.stub.GenerateStream(stream_request("hello", "tone"), metadata=METADATA):
            pass
        await replica.stub.Score(scoring, metadata=METADATA)
        await until(lambda: len(lines) == 3)
    asked = {line["method"].rpartition("/")[2]: line for line in lines}
    assert {name: line["prompt"] for name, line in asked.items()} == {
        "Generate": "tone@default",
        "GenerateStream": "tone",
        "Score": "tone",
    }
    for name, line in asked.items():
        found = (line["request_id"], line["trace_id"], line["caller"], line["version"], line["code"])
        assert found == ("r-1", TRACE_ID, "anonymous", record.name, "OK"), name


async def test_where_nothing_was_resolved_no_version_is_named(replica: Replica) -> None:
    with log_lines("shared.rpc.interceptors", "call") as lines:
        await replica.generate("hello")
        assert isinstance(await refusal(replica.generate("hello", "nobody")), NotFound)
        await until(lambda: len(lines) == 2)  # a call's line follows its answer
    bare, unknown = lines
    assert "version" not in bare
    assert "prompt" not in bare
    assert (unknown["prompt"], unknown["code"]) == ("nobody", "NOT_FOUND")
    assert "version" not in unknown
