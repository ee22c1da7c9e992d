"""A client that asks for a stream and never reads it: the engine finishes the answer all the same, and others are
served meanwhile.
"""

from __future__ import annotations

import logging

import pytest

from tests.inference_service.replica import Replica, stream_request
from tests.log_lines import log_lines
from tests.raw_http2 import framed, raw_call
from tests.waiting import until

METHOD = "/prompttuning.v1.GenerationService/GenerateStream"
NUM_TOKENS = 200


async def test_the_engine_does_not_wait_for_slow_readers(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    request = framed(stream_request("hello", max_new_tokens=NUM_TOKENS, ignore_eos=True).SerializeToString())
    with log_lines("shared.rpc.interceptors", "call") as lines:
        async with raw_call(replica.port, METHOD, window_bytes=0) as unread:
            await unread.send(request, is_last=True)

            async def all_is_generated() -> bool:
                return await replica.metric("tokens_total", kind="generated") == NUM_TOKENS

            async def none_runs() -> bool:  # its figures arrive a moment after its tokens
                return await replica.metric("requests_running") == 0

            await until(all_is_generated)
            await until(none_runs)
            assert lines == [], "its call is still there, waiting to be read"
            answer = await replica.generate("hello", max_new_tokens=5, ignore_eos=True)
            assert answer.end.output_tokens == 5
        await until(lambda: len(lines) == 2)
    assert [line["code"] for line in lines] == ["OK", "CANCELLED"], "it ends when its client goes"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "no error of the service"
