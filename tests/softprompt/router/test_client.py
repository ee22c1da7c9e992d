"""The Python client and the gateway find replicas by the store, without a router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from openai import NotFoundError as NoSuchModel

from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.store import open_store
from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from softprompt.client.sync_client import Client
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import Replica, blob, matrix, publish, running_replica
from tests.softprompt.gateway.running import running_gateway
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

FEW = Sampling(max_new_tokens=8, ignore_eos=True)


@dataclass(frozen=True)
class World:
    """A replica of `tiny-llama` and one of `birch`, each with a prompt."""

    llama: Replica
    birch: Replica
    store_dir: Path

    @property
    def address(self) -> str:
        return f"store:{self.store_dir}"


@pytest.fixture
async def world(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[World]:
    birch_dir, store_dir = save_tiny_llama(tmp_path / "birch", seed=1), tmp_path / "store"
    store = open_store(str(store_dir))
    publish(store, blob(tiny_model_dir, matrix(1), "llama-tone"), "llama-tone")
    publish(store, blob(birch_dir, matrix(2), "birch-tone"), "birch-tone")
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", store_dir=store_dir, replica="a") as llama,
        running_replica(birch_dir, tmp_path / "b", store_dir=store_dir, replica="b") as birch,
    ):
        await until(lambda: len(store.list_replicas()) == 2)
        yield World(llama, birch, store_dir)
    store.close()


async def test_the_client_finds_the_replica_of_each_prompt_and_base_model(world: World) -> None:
    async with AsyncClient(inference=world.address) as client:
        for prompt, replica in (("llama-tone", world.llama), ("birch-tone", world.birch)):
            direct = await replica.generate("hi", prompt, ignore_eos=True)
            assert (await client.generate("hi", prompt=prompt, sampling=FEW)).text == direct.output.text
            stream = client.stream("hi", prompt=prompt, sampling=FEW)
            assert "".join([delta.text async for delta in stream]) == direct.output.text
            assert stream.end is not None
            assert (await client.count_tokens("hi", prompt=prompt)).virtual_tokens == 8
        info = await client.model_info("birch")
        assert info.base_model is not None
        assert (info.base_model.id, info.base_models) == ("birch", ("birch", "tiny-llama"))
        bare = await client.generate("hi", base_model="birch", sampling=FEW)
        assert bare.text == (await world.birch.generate("hi", ignore_eos=True)).output.text
        assert (await client.wait_until_served("birch-tone@1")).version == "prompts/birch-tone/versions/1"
        with pytest.raises(InvalidInput, match=r"input\.base_model"):
            await client.generate("hi")
        with pytest.raises(NotFound, match="nothing"):
            await client.generate("hi", prompt="nothing")
        with pytest.raises(NotFound, match="oak"):
            await client.generate("hi", base_model="oak")


async def test_a_replica_alone_refuses_another_base_model(world: World) -> None:
    async with AsyncClient(inference=f"127.0.0.1:{world.llama.port}") as client:
        assert (await client.model_info()).base_models == ("tiny-llama",)
        assert (await client.generate("hi", base_model="tiny-llama", sampling=FEW)).end.output_tokens == 8
        for prompt in ("", "llama-tone"):
            with pytest.raises(NotFound, match="birch"):
                await client.generate("hi", prompt=prompt, base_model="birch")
        with pytest.raises(NotFound, match="birch"):
            await client.model_info("birch")
        with pytest.raises(PreconditionFailed):
            await client.generate("hi", prompt="birch-tone")
        with pytest.raises(InvalidInput, match=r"input\.base_model"):
            await client.generate("hi", base_model="x" * 201)


async def test_a_stream_that_is_left_ends_on_the_replica(world: World, brake: Brake) -> None:
    brake.holds = True
    long = Sampling(max_new_tokens=400, ignore_eos=True)

    async def is_idle() -> bool:
        return await world.llama.metric("requests_running") == 0

    async with AsyncClient(inference=world.address) as client:
        async with client.stream("hi", prompt="llama-tone", sampling=long) as stream:
            await stream.started()
        await until(is_idle)
        reading = asyncio.create_task(client.stream("hi", prompt="llama-tone", sampling=long).started())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(is_idle)
        left = client.stream("hi", prompt="llama-tone", sampling=long)
        await left.started()  # and then the client is closed
    await until(is_idle)


async def test_the_blocking_client_does_the_same(world: World) -> None:
    def ask() -> str:
        with Client(inference=world.address) as client:
            parts = [delta.text for delta in client.stream("hi", prompt="birch-tone", sampling=FEW)]
            return "".join(parts)

    direct = await world.birch.generate("hi", "birch-tone", ignore_eos=True)
    assert await asyncio.to_thread(ask) == direct.output.text


async def test_a_store_without_replicas_and_one_that_is_none(tmp_path: Path) -> None:
    async with AsyncClient(inference=f"store:{tmp_path / 'wrong'}") as client:
        with pytest.raises(Unavailable, match=r"there is no prompt store at .*/wrong: check the address"):
            await client.generate("hi")
    assert not (tmp_path / "wrong").exists()
    open_store(str(tmp_path / "empty")).close()
    async with AsyncClient(inference=f"store:{tmp_path / 'empty'}") as client:
        with pytest.raises(Unavailable, match="no replica is known"):
            await client.generate("hi", prompt="tone")
    async with AsyncClient(inference=f"store:{__file__}") as client:
        with pytest.raises(InvalidInput, match="is a file"):
            await client.generate("hi", prompt="tone")


async def test_the_gateway_serves_all_base_models_at_one_address(world: World, tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path / "g", 1, 1, inference=world.address) as gateway,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as openai,
    ):
        models = [model.id async for model in await openai.models.list()]
        expected = {"birch", "tiny-llama", "birch-tone", "birch-tone@1", "llama-tone", "llama-tone@1"}
        assert set(models) == expected
        assert len(models) == len(expected)
        tuned = await openai.completions.create(model="llama-tone", prompt="hi", max_tokens=8)
        direct = await world.llama.generate("hi", "llama-tone", max_new_tokens=8)
        assert (tuned.model, tuned.choices[0].text) == ("llama-tone@1", direct.output.text)
        for model, replica in (("birch", world.birch), ("tiny-llama", world.llama)):
            bare = await openai.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=8
            )
            direct = await replica.generate("hi", max_new_tokens=8)  # a text is a user's turn for a model of chats
            assert (bare.model, bare.choices[0].message.content) == (model, direct.output.text)
        with pytest.raises(NoSuchModel):
            await openai.chat.completions.create(model="oak", messages=[{"role": "user", "content": "hi"}])
