"""Inputs within the model's bounds, and large ones kept off the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from inference_service.inputs import InputPreparer, InputRequest
from shared.caller import Caller, Tenant, calling
from shared.errors import InvalidInput
from shared.text.template import InputEncoder, Message, Template, TemplateFormat, bare_template, default_format
from shared.values.generation import TokenIds
from tests.tiny_models import VOCAB_SIZE, byte_tokenizer


class WatchedTokenizer:
    """The byte tokenizer, and on which threads it was used."""

    def __init__(self) -> None:
        self.inner, self.threads = byte_tokenizer(), set[str]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def encoder(template: Template | None = None, tokenizer: Any = None) -> InputEncoder:
    return InputEncoder(tokenizer or byte_tokenizer(), template or Template())


async def test_what_does_not_fit_is_refused_with_the_counts() -> None:
    preparer = InputPreparer(VOCAB_SIZE, max_length=50)
    with pytest.raises(InvalidInput) as caught:
        await preparer.prepare(InputRequest("x" * 60), encoder(), num_virtual_tokens=10)
    assert "60 tokens" in caught.value.message
    assert "at most 39" in caught.value.message


async def test_truncation_keeps_the_end() -> None:
    preparer = InputPreparer(VOCAB_SIZE, max_length=50)
    prepared = await preparer.prepare(
        InputRequest(TokenIds(tuple(range(100, 160))), truncate=True), encoder(), 10, reserve=5
    )
    assert prepared.ids == tuple(range(125, 160))


async def test_nothing_fits_behind_a_soft_prompt_as_long_as_the_model() -> None:
    preparer = InputPreparer(VOCAB_SIZE, max_length=50)
    with pytest.raises(InvalidInput, match="at most 0"):
        await preparer.prepare(InputRequest("x", truncate=True), encoder(), num_virtual_tokens=49)


async def test_only_the_first_wrong_ids_are_listed() -> None:
    with pytest.raises(InvalidInput) as caught:
        await InputPreparer(VOCAB_SIZE, 1 << 20).prepare(InputRequest(TokenIds((VOCAB_SIZE,) * 1000)), encoder(), 0)
    assert len(caught.value.violations) == 16
    assert caught.value.violations[15].field == "input.token_ids.ids[15]"


async def test_a_token_that_the_model_lacks_is_refused_and_not_looked_up() -> None:
    """Tokens are added to tokenizers without resizing the model, and many are not special."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])
    with pytest.raises(InvalidInput, match=rf"input.text: has the token id {VOCAB_SIZE}, but"):
        await InputPreparer(VOCAB_SIZE, 50).prepare(InputRequest("see <image>"), encoder(tokenizer=tokenizer), 0)


def test_a_candidate_with_a_token_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(InvalidInput, match=rf"candidates\[1\]: has the token id {VOCAB_SIZE}, but"):
        InputPreparer(VOCAB_SIZE, 50).check_vocabulary((5, VOCAB_SIZE), "candidates[1]")


async def test_a_conversation_is_the_input_of_a_text_template() -> None:
    request = InputRequest((Message(role="user", content="hi"),))
    prepared = await InputPreparer(VOCAB_SIZE, 100).prepare(request, encoder(), 0)
    assert prepared.ids == (await InputPreparer(VOCAB_SIZE, 100).prepare(InputRequest("hi"), encoder(), 0)).ids


async def test_the_bare_model_takes_text_and_conversations_through_its_chat_template() -> None:
    tokenizer, preparer = byte_tokenizer(), InputPreparer(VOCAB_SIZE, 100)
    found = []
    for content in ("hi", (Message(role="user", content="hi"),)):
        template = bare_template(None, default_format(tokenizer))
        found.append((await preparer.prepare(InputRequest(content), encoder(template, tokenizer), 0)).ids)
    assert found[0] == found[1]
    assert tokenizer.decode(found[0]) == "<user>hi<end><assistant>"


def test_a_request_for_the_bare_model_may_choose_the_format() -> None:
    text = Template(format=TemplateFormat.TEXT)
    assert bare_template(text, TemplateFormat.CHAT).format is TemplateFormat.TEXT


async def test_a_chat_templates_own_refusal_is_the_callers_error() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    request = InputRequest((Message(role="user", content="hi"),))
    with pytest.raises(InvalidInput, match="roles must alternate"):
        await InputPreparer(VOCAB_SIZE, 100).prepare(
            request, encoder(Template(format=TemplateFormat.CHAT), tokenizer), 0
        )


@pytest.mark.parametrize("large_template", [False, True])
async def test_large_inputs_and_templates_leave_the_event_loop_free(large_template: bool) -> None:
    tokenizer = WatchedTokenizer()
    watched = encoder(tokenizer=tokenizer)
    preparer = InputPreparer(VOCAB_SIZE, max_length=1 << 20)
    await preparer.prepare(InputRequest("x" * 100), watched, 0)
    assert tokenizer.threads == {threading.current_thread().name}
    tokenizer.threads.clear()
    text, size = "x" * 200_000, 200_000
    if large_template:
        text, size = "x", 30_000
        watched = encoder(Template(text="y" * (size - 1) + "{input}"), tokenizer)
    large = asyncio.create_task(preparer.prepare(InputRequest(text), watched, 0))
    await asyncio.sleep(0)
    assert not large.done()
    assert len((await large).ids) == size
    assert threading.current_thread().name not in tokenizer.threads
    preparer.close()


async def test_a_tenants_large_inputs_do_not_queue_behind_all_of_another_tenants() -> None:
    preparer = InputPreparer(VOCAB_SIZE, max_length=1 << 21)
    order = list[str]()

    async def prepare(tenant: str) -> None:
        with calling(Caller(f"caller of {tenant}", frozenset(), group=Tenant(tenant))):
            await preparer.run(1 << 20, lambda: order.append(tenant))

    go_on = threading.Event()
    busy = asyncio.create_task(preparer.run(1 << 20, lambda: go_on.wait()))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(prepare(tenant)) for tenant in ["greedy"] * 20 + ["modest"]]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(busy, *waiting)
    assert order.index("modest") <= 1
    preparer.close()
