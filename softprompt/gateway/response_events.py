"""A response of the Responses API while it is written, and the events of its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from shared.values.generation import GenerationEnd, GenerationStart
from softprompt.gateway import results
from softprompt.gateway.answers import AnswerStreams
from softprompt.gateway.errors import Rename, api_error
from softprompt.gateway.streaming import PING, StreamFailed, event
from softprompt.gateway.text_tokens import TextPart, only_text_tokens


class ResponseDraft:
    """One response: an answer of one message with one text."""

    def __init__(self, asked: dict[str, Any], model: str, start: GenerationStart) -> None:
        """`asked`: the fields that repeat the request's."""
        self._asked, self._model, self._start = asked, model, start
        self._id, self._created, self.item_id = results.new_id("resp"), results.now(), results.new_id("msg")
        self._text, self._logprobs = "", list[dict[str, Any]]()

    def add(self, delta: TextPart) -> list[dict[str, Any]]:
        """Append a part of the answer; its tokens, if log-probabilities were asked for."""
        found = [results.token_with_top(one) for one in delta.logprobs]
        self._text += delta.text
        self._logprobs += found
        return found

    def part(self) -> dict[str, Any]:
        """The text so far."""
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def item(self, status: str) -> dict[str, Any]:
        """The message so far."""
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def begun(self) -> dict[str, Any]:
        """The response before its first token."""
        return self._response("in_progress", [])

    def ended(self, end: GenerationEnd) -> dict[str, Any]:
        """The whole response."""
        status = "completed" if results.finish_reason(end) == "stop" else "incomplete"
        start = self._start
        usage = {
            "input_tokens": start.input_tokens,
            "input_tokens_details": {"cached_tokens": results.cached_tokens(start), "cache_write_tokens": 0},
            "output_tokens": end.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": start.input_tokens + end.output_tokens,
        }
        incomplete = None if status == "completed" else {"reason": "max_output_tokens"}
        return self._response(status, [self.item(status)], usage=usage, incomplete_details=incomplete)

    def failed(self, message: str) -> dict[str, Any]:
        """The response that an error ended."""
        error = {"code": "server_error", "message": message}
        return self._response("failed", [self.item("incomplete")], error=error)

    def _response(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": output,
            **self._asked,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "store": False,
            "previous_response_id": None,
            "usage": None,
            **more,
        }


async def response_events(
    draft: ResponseDraft, streams: AnswerStreams, rename: Rename, model: str
) -> AsyncGenerator[bytes]:
    """The events in their order, numbered. Raises StreamFailed with the event `response.failed`."""
    number = -1

    def numbered(kind: str, **data: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number, **data}, kind)

    yield numbered("response.created", response=draft.begun())
    yield numbered("response.in_progress", response=draft.begun())
    yield numbered("response.output_item.added", output_index=0, item=draft.item("in_progress"))
    place = {"item_id": draft.item_id, "output_index": 0, "content_index": 0}
    yield numbered("response.content_part.added", **place, part=draft.part())
    try:
        async for found in only_text_tokens(streams.parts()):
            if found is None:
                yield PING
                continue
            _, part = found
            if isinstance(part, TextPart):
                logprobs = draft.add(part)
                yield numbered("response.output_text.delta", **place, delta=part.text, logprobs=logprobs)
                continue
            whole, text = draft.ended(part), draft.part()
            yield numbered("response.output_text.done", **place, text=text["text"], logprobs=text["logprobs"])
            yield numbered("response.content_part.done", **place, part=text)
            yield numbered("response.output_item.done", output_index=0, item=draft.item(whole["status"]))
            yield numbered(f"response.{whole['status']}", response=whole)
    except Exception as error:
        shown = api_error(error, rename, model)
        last = numbered("response.failed", response=draft.failed(shown.message))
        raise StreamFailed(last, shown.status) from error
