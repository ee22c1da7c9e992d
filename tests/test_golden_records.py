"""Golden records hold no user's text and still prove their purpose: this matrix, template, place and model, in every
dtype.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.plan import Chunk
from inference_service.engine.engine import Engine
from inference_service.engine.run import model_runner
from inference_service.prompts.version import RefusalReason, VersionRefused
from inference_service.prompts.version_loader import VersionLoader
from shared.model.base_model import BaseModel, load
from shared.model.options import DType, ModelOptions
from shared.prompt.blob import decode_blob, encode_blob
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.lift import key_values_of
from shared.prompt.manifest import GoldenRecord
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import open_store
from shared.text.golden_inputs import GOLDEN_INPUTS
from shared.text.template import InputEncoder, Template, TemplateFormat
from tests.inference_service.engine.builders import small_config
from tests.inference_service.replica import blob, matrix, publish, running_replica
from tests.inference_service.test_proof_rpc import golden_of
from tests.tiny_models import FLOAT32, LLAMA_SHAPE, byte_tokenizer, save_tiny_model
from tests.trainer_service.training.tasks import TEMPLATE, classification, of, run, task
from trainer_service.training.cohort import Cohort
from trainer_service.training.evaluation.golden import golden_records
from trainer_service.training.events import Finished, TrainingResult

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 40},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


def model_dir(directory: Path, kind: str) -> Path:
    """So large weights that answers depend on the prompt."""
    return save_tiny_model(directory / kind, kind, **{**LLAMA_SHAPE, **MODELS[kind], "initializer_range": 0.3})


def trained(base: BaseModel) -> TrainingResult:
    one = task(train=classification(12), validation=classification(6, 100), num_steps=10, learning_rate=0.05)
    return of(run(Cohort(base), one), Finished)[0].result


@asynccontextmanager
async def loader(directory: Path, base: BaseModel, data: bytes) -> AsyncIterator[tuple[Callable[[], Any], AsyncEngine]]:
    store = open_store(str(directory / "store"))
    record = publish(store, data)
    engine = AsyncEngine(
        Engine.from_base_model(base, small_config(max_length=512, max_tokens_per_step=64, kv_cache_bytes=1 << 24))
    )
    engine.start()
    try:
        yield lambda: VersionLoader(store, engine, base, engine.engine.config.max_length, 64).load(record), engine
    finally:
        await engine.stop()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_what_a_cohort_recorded_is_served_and_every_fault_is_refused(
    tmp_path: Path, kind: str, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_dir(tmp_path, kind)
    result = trained(load(directory, ModelOptions(dtype=dtype, device="cpu")))
    assert len(result.golden) == len(GOLDEN_INPUTS)
    assert {record.text for record in result.golden} == {""}
    data = blob(directory, result.prefix.tensors()["prompt_embeddings"], template=TEMPLATE, golden=result.golden)

    base = load(directory, ModelOptions(dtype=dtype, device="cpu"))
    async with loader(tmp_path / "sound", base, data) as (attempt, _):
        assert (await attempt()).prefix.num_virtual_tokens == result.prefix.num_virtual_tokens

    other = decode_blob(data).manifest.model_copy(update={"template": Template(text="In: {input}\nOut :")})
    async with loader(tmp_path / "template", base, encode_blob(result.prefix, other)) as (attempt, _):
        assert await refusal(attempt) is RefusalReason.GOLDEN

    async with loader(tmp_path / "ignored", base, data) as (attempt, engine):
        load_prefix = engine.load_prefix

        async def another(prefix_id: str, soft_prompt: SoftPrompt) -> None:
            await load_prefix(prefix_id, SoftPrompt(soft_prompt.embeddings.flip(0) * 0.5))

        monkeypatch.setattr(engine, "load_prefix", another)
        assert await refusal(attempt) is RefusalReason.GOLDEN

    async with loader(tmp_path / "position", base, data) as (attempt, _):
        positions = model_runner.fed_positions

        def without_virtual(chunk: Chunk) -> list[int]:
            virtual = chunk.sequence.num_virtual
            return [position - virtual if position >= virtual else position for position in positions(chunk)]

        with monkeypatch.context() as patched:
            patched.setattr(model_runner, "fed_positions", without_virtual)
            assert await refusal(attempt) is RefusalReason.GOLDEN

    damaged = load(directory, ModelOptions(dtype=dtype, device="cpu"))
    weight = next(
        value
        for name, value in damaged.model.named_parameters()
        if name.endswith(("1.mlp.down_proj.weight", "1.mlp.c_proj.weight"))
    )
    with torch.no_grad():
        weight[5, 7] += 40.0 if dtype == "float32" else 400.0  # within the rounding of bfloat16 less may hide
    async with loader(tmp_path / "weight", damaged, data) as (attempt, _):
        assert await refusal(attempt) is RefusalReason.GOLDEN


def rolled(prefix: KeyValuePrefix, base: BaseModel, embeddings: torch.Tensor) -> KeyValuePrefix:
    """The keys one position too far: those of the prompt after another token, whose own are cut off."""
    longer = key_values_of(base, torch.cat([embeddings[:1] * 0, embeddings]))
    return KeyValuePrefix(tuple(key[1:].contiguous() for key in longer.keys), prefix.values)


def with_one_value_changed(prefix: KeyValuePrefix, change: float) -> KeyValuePrefix:
    value = prefix.values[0].clone()
    value[-1, 0, 3] += change
    return KeyValuePrefix(prefix.keys, (value, *prefix.values[1:]))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_keys_and_values_are_served_as_recorded_and_every_fault_is_refused(
    tmp_path: Path, kind: str, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_dir(tmp_path, kind)
    trainers = load(directory, ModelOptions(dtype=dtype, device="cpu"))
    embeddings = 0.3 * matrix(3, 12)
    prefix = key_values_of(trainers, embeddings)
    golden = golden_records(trainers, prefix, InputEncoder(trainers.tokenizer, TEMPLATE))
    assert len(golden) == len(GOLDEN_INPUTS)
    data = blob(directory, prefix, template=TEMPLATE, golden=golden)
    base = load(directory, ModelOptions(dtype=dtype, device="cpu"))
    other = decode_blob(data).manifest.model_copy(update={"template": Template(text="In: {input}\nOut :")})
    faults: dict[str, Prefix] = {
        "layers in another order": KeyValuePrefix(prefix.keys[::-1], prefix.values[::-1]),
        "keys and values exchanged": KeyValuePrefix(prefix.values, prefix.keys),
        "values of other positions than the keys": KeyValuePrefix(
            prefix.keys, tuple(layer.roll(1, 0) for layer in prefix.values)
        ),
        "positions one off": rolled(prefix, trainers, embeddings),
        "a value damaged": with_one_value_changed(prefix, 4.0 if dtype == "float32" else 400.0),
        "another prefix": key_values_of(trainers, 0.3 * matrix(4, 12)),
    }
    async with loader(tmp_path / "sound", base, data) as (attempt, engine):
        version = await attempt()
        assert version.prefix.equals(prefix)
        await engine.unload_prefix(version.prefix_id)
        load_prefix = engine.load_prefix
        for name, fault in faults.items():

            async def faulty(prefix_id: str, _: Prefix, fault: Prefix = fault) -> None:
                await load_prefix(prefix_id, fault)

            with monkeypatch.context() as patched:
                patched.setattr(engine, "load_prefix", faulty)
                assert await refusal(attempt) is RefusalReason.GOLDEN, name
    async with loader(tmp_path / "template", base, encode_blob(prefix, other)) as (attempt, _):
        assert await refusal(attempt) is RefusalReason.GOLDEN


async def refusal(attempt: Callable[[], Any]) -> RefusalReason:
    with pytest.raises(VersionRefused) as refused:
        await attempt()
    return refused.value.reason


async def test_nothing_of_the_training_data_is_in_a_blob(tmp_path: Path) -> None:
    directory = model_dir(tmp_path, "llama")
    secret = "account 4711 of Ms Example"
    train = tuple(replace(example, input=f"{secret} {example.line}") for example in classification(12))
    held_out = tuple(replace(example, input=f"{secret} {example.line}") for example in classification(6, 100))
    base = load(directory, FLOAT32)
    result = of(run(Cohort(base), task(train=train, validation=held_out, num_steps=4)), Finished)[0].result
    data = blob(directory, result.prefix.tensors()["prompt_embeddings"], template=TEMPLATE, golden=result.golden)
    assert secret.encode() not in data
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(record.input_ids) for record in decode_blob(data).manifest.golden]
    assert texts == [TEMPLATE.render(text) for text in GOLDEN_INPUTS]


async def test_a_record_that_only_claims_to_be_synthetic_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    (old,) = golden_of(tiny_model_dir, matrix(1))
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        record = publish(replica.store, blob(tiny_model_dir, matrix(1), golden=(old,)))
        await replica.state(record.name, "LOADED")  # with its text, as earlier releases wrote it
        claims = publish(replica.store, blob(tiny_model_dir, matrix(1), golden=(old.model_copy(update={"text": ""}),)))
        refused = await replica.state(claims.name, "QUARANTINED")
        assert "this version's template does not give" in refused.reason


@pytest.mark.parametrize(
    "template",
    [Template(text="Q: {input} A:"), Template(text="Say {input}", format=TemplateFormat.CHAT, system="Be brief.")],
)
async def test_an_import_is_proven_in_float32_with_its_own_template(
    tmp_path: Path, tiny_model_dir: Path, template: Template
) -> None:
    base = load(tiny_model_dir, FLOAT32)
    plain = blob(tiny_model_dir, matrix(1), template=template)
    golden = golden_records(base, decode_blob(plain).prefix, InputEncoder(base.tokenizer, template))
    assert {(record.text, record.dtype) for record in golden} == {("", "float32")}
    assert len(golden) == len(GOLDEN_INPUTS)
    async with running_replica(tiny_model_dir, tmp_path, dtype="bfloat16") as replica:
        record = publish(replica.store, blob(tiny_model_dir, matrix(1), template=template, golden=golden))
        await replica.state(record.name, "LOADED")


def test_old_records_are_read_as_they_were() -> None:
    old = json.dumps(
        {"text": "hello", "input_ids": [5], "top_token_ids": [7], "top_logprobs": [-0.1], "dtype": "float32"}
    )
    assert not GoldenRecord.model_validate_json(old).is_synthetic
