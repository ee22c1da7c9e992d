"""A version of keys and values on a replica: loaded without a computed step, swapped in, split, refused, unknown."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
import torch

from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.prompt import blob as blob_module
from shared.prompt.digest import digest_of
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.lift import key_values_of
from shared.store import AliasTarget
from shared.text.template import InputEncoder, Template
from tests.inference_service.replica import Replica, blob, matrix, publish, stream_request
from tests.waiting import until
from trainer_service.training.evaluation.golden import golden_records

V1, V2, V3 = (f"prompts/tone/versions/{number}" for number in (1, 2, 3))
TEMPLATE = Template(text="{input}")


@pytest.fixture(scope="module")
def lifted(tiny_model_dir: Path) -> KeyValuePrefix:
    """The keys and values of `matrix(2)`."""
    return key_values_of(load(tiny_model_dir, ModelOptions(dtype="float32", device="cpu")), matrix(2))


async def test_a_prefix_takes_the_place_of_a_prompt_while_that_answers(
    replica: Replica, tiny_model_dir: Path, lifted: KeyValuePrefix
) -> None:
    base = load(tiny_model_dir, ModelOptions(dtype="float32", device="cpu"))
    golden = golden_records(base, lifted, InputEncoder(base.tokenizer, TEMPLATE))
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    call = replica.stub.GenerateStream(stream_request("hello", "tone", max_new_tokens=200, ignore_eos=True))
    assert (await call.read()).start.version == V1

    publish(replica.store, blob(tiny_model_dir, lifted, template=TEMPLATE, golden=golden))
    loaded = await replica.state(V2, "LOADED")
    assert (loaded.kind, loaded.num_virtual_tokens) == ("PREFIX", 8)
    assert loaded.prefix_kv_bytes == sum(tensor.nbytes for tensor in (*lifted.keys, *lifted.values))
    assert await replica.served_version() == V2
    messages = 0
    while await call.read() is not grpc.aio.EOF:
        messages += 1
    assert messages, "the stream on version 1 goes on to its end"

    publish(replica.store, blob(tiny_model_dir, matrix(2)), alias=None)  # the prompt of which it has the keys
    await replica.generate("hello", "tone@3", max_new_tokens=1)
    answers = [
        (await replica.generate("abc", f"tone@{number}", temperature=0, max_new_tokens=12)).output.token_ids
        for number in (2, 3)
    ]
    assert answers[0] == answers[1]

    replica.store.set_alias("tone", "canary", (AliasTarget(1, 1), AliasTarget(2, 1)))

    async def knows_the_canary() -> bool:
        return "canary" in (await replica.loaded())[V1].aliases

    await until(knows_the_canary)
    served = {(await replica.generate("x", "tone@canary", max_new_tokens=1)).start.version for _ in range(40)}
    assert served == {V1, V2}


async def test_a_prefix_of_other_layers_is_quarantined_and_the_prompt_goes_on(
    replica: Replica, tiny_model_dir: Path, lifted: KeyValuePrefix
) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    narrow = KeyValuePrefix(
        *(tuple(layer[..., :8].contiguous() for layer in part) for part in (lifted.keys, lifted.values))
    )
    publish(replica.store, blob(tiny_model_dir, narrow))
    refused = await replica.state(V2, "QUARANTINED")
    assert "key_width=8" in refused.reason
    assert "in layer 0" in refused.reason
    assert await replica.served_version() == V1
    assert await replica.metric("version_load_failures_total", reason="shape") == 1


async def test_a_kind_of_a_later_release_is_refused_by_name_and_the_prompt_goes_on(
    replica: Replica, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica of this build does with it, a replica of the first release does with keys and values."""
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    good = blob(tiny_model_dir, matrix(2))
    end = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:end])
    manifest = json.loads(header["__metadata__"]["manifest"])
    header["__metadata__"]["manifest"] = json.dumps({**manifest, "kind": "HOLOGRAM"})
    text = json.dumps(header).encode()
    later = len(text).to_bytes(8, "little") + text + good[end:]
    sound = blob_module.decode_blob(good)
    with monkeypatch.context() as patch:
        unchecked = blob_module.PromptBlob(sound.prefix, sound.manifest, digest_of(later))
        patch.setattr(blob_module, "decode_blob", lambda data: unchecked)
        publish(replica.store, later)
    refused = await replica.state(V2, "QUARANTINED")
    assert "kind" in refused.reason
    assert await replica.served_version() == V1
    assert torch.equal(sound.prefix.tensors()["prompt_embeddings"], matrix(2))
