"""PromptService through a real channel: versions, aliases with compare-and-set, download, import, watch."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from prompttuning.v1 import prompts_pb2 as pb
from prompttuning.v1 import tuning_pb2
from prompttuning.v1.common_pb2 import SamplingParams, Template
from safetensors.torch import save

from shared.errors import Conflict, DamagedBlob, InvalidInput, NotFound, PreconditionFailed
from shared.prompt.blob import decode_blob, encode_blob
from tests.trainer_service.conftest import RunningTrainer, refused
from tests.trainer_service.requests import create_job, generation_examples, inline

MATRIX = torch.arange(4 * 64, dtype=torch.float32).reshape(4, 64) / 1000
"""[num_virtual_tokens, hidden_size]"""


def import_of(data: bytes, chunk_bytes: int = 100, **header: Any) -> Iterator[pb.ImportPromptVersionRequest]:
    yield pb.ImportPromptVersionRequest(header=pb.ImportHeader(**{"prompt": "colours", "base_model": "tiny", **header}))
    for start in range(0, len(data), chunk_bytes):
        yield pb.ImportPromptVersionRequest(chunk=data[start : start + chunk_bytes])


async def publish(trainer: RunningTrainer, matrix: torch.Tensor = MATRIX, **header: Any) -> pb.PromptVersion:
    response = await trainer.prompts.ImportPromptVersion(import_of(save({"prompt_embeddings": matrix}), **header))
    version: pb.PromptVersion = response.version
    return version


async def download(trainer: RunningTrainer, name: str) -> tuple[pb.PromptVersion, bytes]:
    first, *rest = [
        part async for part in trainer.prompts.DownloadPromptVersion(pb.DownloadPromptVersionRequest(name=name))
    ]
    return first.version, b"".join(part.chunk for part in rest)


def target(version: int, weight: float = 1.0) -> pb.AliasTarget:
    return pb.AliasTarget(version=version, weight=weight)


async def set_alias(
    trainer: RunningTrainer, alias: str, *targets: pb.AliasTarget, **expected: int
) -> pb.SetPromptAliasResponse:
    request = pb.SetPromptAliasRequest(prompt="prompts/colours", alias=alias, targets=targets, **expected)
    response: pb.SetPromptAliasResponse = await trainer.prompts.SetPromptAlias(request)
    return response


async def test_an_imported_matrix_is_a_version_like_any_other(trainer: RunningTrainer) -> None:
    template = Template(text="Colour of {input}:", format=Template.FORMAT_TEXT)
    version = await publish(trainer, template=template, labels=["red", "green"])
    assert version.name == "prompts/colours/versions/1"
    assert version.job == ""
    assert version.num_virtual_tokens == 4
    assert version.template == template
    assert list(version.labels) == ["red", "green"]
    assert version.base_model.id == "tiny"
    assert list(version.aliases) == ["default"]
    for name in ("colours", "colours@default", "colours@1", "prompts/colours/versions/1"):
        assert (await trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name=name))).version == version
    header, data = await download(trainer, "colours")
    assert header == version
    assert version.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert version.size_bytes == len(data)
    assert torch.equal(decode_blob(data).prefix.tensors()["prompt_embeddings"], MATRIX)


async def test_a_downloaded_blob_can_be_imported_under_another_name(trainer: RunningTrainer) -> None:
    await publish(trainer, template=Template(text="Colour of {input}:"))
    _, data = await download(trainer, "colours")
    response = await trainer.prompts.ImportPromptVersion(import_of(data, prompt="copy"))
    assert response.version.name == "prompts/copy/versions/1"
    assert response.version.template.text == "Colour of {input}:"


async def test_an_import_with_a_request_id_happens_once(trainer: RunningTrainer) -> None:
    first = await publish(trainer, request_id="a")
    assert (await publish(trainer, request_id="a")).name == first.name
    assert (await publish(trainer, request_id="b")).name == "prompts/colours/versions/2"


async def test_listing_prompts_and_versions_in_pages(trainer: RunningTrainer) -> None:
    for name in ("tone-a", "tone-b", "other"):
        await publish(trainer, prompt=name)
    for n in range(4):
        await publish(trainer, MATRIX + n, prompt="tone-a", alias="-")
    page = await trainer.prompts.ListPrompts(pb.ListPromptsRequest(page_size=2))
    assert [prompt.name for prompt in page.prompts] == ["prompts/other", "prompts/tone-a"]
    rest = await trainer.prompts.ListPrompts(pb.ListPromptsRequest(page_size=2, page_token=page.next_page_token))
    assert [prompt.name for prompt in rest.prompts] == ["prompts/tone-b"]
    assert not rest.next_page_token
    tone = await trainer.prompts.ListPrompts(pb.ListPromptsRequest(name_prefix="tone-"))
    assert [(prompt.name, prompt.latest_version, prompt.num_versions) for prompt in tone.prompts] == [
        ("prompts/tone-a", 5, 5),
        ("prompts/tone-b", 1, 1),
    ]
    assert (await trainer.prompts.GetPrompt(pb.GetPromptRequest(name="prompts/tone-a"))).prompt == tone.prompts[0]
    numbers: list[str] = []
    token = ""
    while True:
        request = pb.ListPromptVersionsRequest(parent="prompts/tone-a", page_size=2, page_token=token)
        versions = await trainer.prompts.ListPromptVersions(request)
        numbers += [version.name.rpartition("/")[2] for version in versions.versions]
        token = versions.next_page_token
        if not token:
            break
    assert numbers == ["5", "4", "3", "2", "1"]


async def test_an_alias_moves_only_from_where_the_caller_thinks(trainer: RunningTrainer) -> None:
    for n in range(3):
        await publish(trainer, MATRIX + n, alias="-")
    created = await set_alias(trainer, "staging", target(1), expected_version=0)
    assert [t.version for t in created.alias.targets] == [1]
    moved = await set_alias(trainer, "staging", target(2), expected_version=1)
    assert moved.revision > created.revision
    stale = await refused(set_alias(trainer, "staging", target(3), expected_version=1))
    assert isinstance(stale, Conflict)
    assert stale.metadata["current"] == "2"
    exists = await refused(set_alias(trainer, "staging", target(3), expected_version=0))
    assert isinstance(exists, Conflict)
    by_revision = await refused(set_alias(trainer, "staging", target(3), expected_revision=created.alias.revision))
    assert isinstance(by_revision, Conflict)
    canary = await set_alias(trainer, "staging", target(2, 0.9), target(3, 0.1), expected_revision=moved.alias.revision)
    assert [(t.version, round(t.weight / canary.alias.targets[1].weight)) for t in canary.alias.targets] == [
        (2, 9),
        (3, 1),
    ]
    removed = await set_alias(trainer, "staging")
    assert not removed.alias.targets
    prompt = (await trainer.prompts.GetPrompt(pb.GetPromptRequest(name="colours"))).prompt
    assert not prompt.aliases


async def test_a_version_that_an_alias_names_is_not_deleted(trainer: RunningTrainer) -> None:
    await publish(trainer)
    await publish(trainer, MATRIX + 1)
    named = await refused(
        trainer.prompts.DeletePromptVersion(pb.DeletePromptVersionRequest(name="prompts/colours/versions/2"))
    )
    assert isinstance(named, PreconditionFailed)
    await trainer.prompts.DeletePromptVersion(pb.DeletePromptVersionRequest(name="prompts/colours/versions/1"))
    gone = await refused(trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name="colours@1")))
    assert isinstance(gone, NotFound)
    assert (await publish(trainer, MATRIX + 2)).name == "prompts/colours/versions/3"


async def test_a_watch_tells_what_is_and_then_what_happens(trainer: RunningTrainer) -> None:
    await publish(trainer, prompt="colours")
    watch = aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest(name_prefix="col")))
    snapshot = await anext(watch)
    assert [prompt.name for prompt in snapshot.snapshot.prompts] == ["prompts/colours"]
    await publish(trainer, prompt="unseen")
    await publish(trainer, MATRIX + 1)
    published, moved = await anext(watch), await anext(watch)
    assert published.published.name == "prompts/colours/versions/2"
    assert moved.alias_set.prompt == "prompts/colours"
    assert [t.version for t in moved.alias_set.alias.targets] == [2]
    await trainer.prompts.DeletePromptVersion(pb.DeletePromptVersionRequest(name="colours@1"))
    deleted = await anext(watch)
    assert deleted.deleted_version == "prompts/colours/versions/1"
    resumed = aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest(after_revision=published.revision)))
    assert (await anext(resumed)) == deleted
    ahead = aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest(after_revision=10**9)))
    assert (await anext(ahead)).HasField("snapshot")


async def test_unknown_names_are_not_found(trainer: RunningTrainer) -> None:
    await publish(trainer)
    calls = [
        trainer.prompts.GetPrompt(pb.GetPromptRequest(name="prompts/nobody")),
        trainer.prompts.ListPromptVersions(pb.ListPromptVersionsRequest(parent="nobody")),
        trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name="nobody")),
        trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name="colours@9")),
        trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name="colours@canary")),
        trainer.prompts.DeletePromptVersion(pb.DeletePromptVersionRequest(name="colours@9")),
        set_alias(trainer, "default", target(9)),
        trainer.prompts.DownloadPromptVersion(pb.DownloadPromptVersionRequest(name="colours@9")).read(),
    ]
    errors = await asyncio.gather(*map(refused, calls))
    assert [type(error) for error in errors] == [NotFound] * len(calls)


async def test_bad_requests_name_their_field(trainer: RunningTrainer) -> None:
    await publish(trainer)
    cases: list[tuple[Any, str]] = [
        (trainer.prompts.GetPrompt(pb.GetPromptRequest(name="prompts/../x")), "name"),
        (trainer.prompts.GetPromptVersion(pb.GetPromptVersionRequest(name="prompts/colours/versions/0")), "name"),
        (trainer.prompts.DeletePromptVersion(pb.DeletePromptVersionRequest(name="colours@default")), "name"),
        (trainer.prompts.ListPrompts(pb.ListPromptsRequest(page_token="../x")), "page_token"),
        (trainer.prompts.ListPrompts(pb.ListPromptsRequest(page_size=-1)), "page_size"),
        (
            trainer.prompts.ListPromptVersions(pb.ListPromptVersionsRequest(parent="colours", page_token="x")),
            "page_token",
        ),
        (set_alias(trainer, "7", target(1)), "alias"),
        (set_alias(trainer, "../x", target(1)), "alias"),
        (set_alias(trainer, "a", target(0)), "targets[0].version"),
        (set_alias(trainer, "a", target(1, 0.0)), "targets[0].weight"),
        (set_alias(trainer, "a", target(1, float("nan"))), "targets[0].weight"),
        (set_alias(trainer, "a", *[target(n) for n in range(1, 10)]), "targets"),
        (set_alias(trainer, "a", target(1), expected_version=-1), "expected_version"),
        (trainer.prompts.WatchPrompts(pb.WatchPromptsRequest(after_revision=-1)).read(), "after_revision"),
    ]
    for call, field in cases:
        error = await refused(call)
        assert isinstance(error, InvalidInput), (field, error)
        assert [violation.field for violation in error.violations] == [field]


async def test_bad_imports_are_refused_and_publish_nothing(trainer: RunningTrainer) -> None:
    sound = save({"prompt_embeddings": MATRIX})
    not_finite = MATRIX.clone()
    not_finite[1, 1] = float("nan")
    cases: list[tuple[Iterator[pb.ImportPromptVersionRequest], type]] = [
        (import_of(sound, prompt="../x"), InvalidInput),
        (import_of(sound, base_model="nobody"), InvalidInput),
        (import_of(sound, alias="7"), InvalidInput),
        (import_of(sound, template=Template(text="no field")), InvalidInput),
        (import_of(b""), DamagedBlob),
        (import_of(sound[:-1]), DamagedBlob),
        (import_of(b"\xff" * 100), DamagedBlob),
        (import_of(b"PK\x03\x04" + b"x" * 100), InvalidInput),
        (import_of(b"\x80\x02}q\x00."), InvalidInput),
        (import_of(save({"prompt_embeddings": not_finite})), DamagedBlob),
        (import_of(save({"prompt_embeddings": MATRIX[:0]})), DamagedBlob),
        (import_of(save({"prompt_embeddings": MATRIX.long()})), InvalidInput),
        (import_of(save({"prompt_embeddings": MATRIX.flatten()})), DamagedBlob),
        (import_of(save({"a": MATRIX, "b": MATRIX + 1})), InvalidInput),
        (import_of(save({"prompt_embeddings": MATRIX[:, :32].contiguous()})), PreconditionFailed),
        (iter([pb.ImportPromptVersionRequest(chunk=sound)]), InvalidInput),
        (iter([]), InvalidInput),
    ]
    for number, (requests, expected) in enumerate(cases):
        error = await refused(trainer.prompts.ImportPromptVersion(requests))
        assert isinstance(error, expected), (number, error)
    assert not (await trainer.prompts.ListPrompts(pb.ListPromptsRequest())).prompts


async def test_a_blob_of_another_base_model_names_both_fingerprints(trainer: RunningTrainer) -> None:
    version = await publish(trainer)
    _, data = await download(trainer, "colours")
    blob = decode_blob(data)
    other = replace(blob.manifest.base_model, fingerprint="sha256:" + "9" * 64)
    foreign = encode_blob(blob.prefix, blob.manifest.model_copy(update={"base_model": other}))
    error = await refused(trainer.prompts.ImportPromptVersion(import_of(foreign)))
    assert isinstance(error, PreconditionFailed)
    assert "9" * 64 in error.message
    assert version.base_model.fingerprint in error.message


async def test_training_starts_from_a_published_version(trainer: RunningTrainer) -> None:
    await publish(trainer)
    await publish(trainer, MATRIX + 1, alias="-")
    init = tuning_pb2.PromptInit(source="colours@default")
    job = await create_job(trainer, prompt="colours", hyperparameters=tuning_pb2.Hyperparameters(init=init))
    effective = job.effective_spec.hyperparameters
    assert effective.init.method == tuning_pb2.PromptInit.METHOD_FROM_PROMPT
    assert effective.init.source == "prompts/colours/versions/1"
    assert effective.num_virtual_tokens == 4
    error = await refused(
        create_job(
            trainer, prompt="colours", hyperparameters=tuning_pb2.Hyperparameters(init=init, num_virtual_tokens=9)
        )
    )
    assert isinstance(error, InvalidInput)
    assert [violation.field for violation in error.violations] == ["spec.hyperparameters.num_virtual_tokens"]


async def test_training_from_a_version_of_another_model_names_both_fingerprints(trainer: RunningTrainer) -> None:
    from shared.store import open_store

    await publish(trainer)
    _, data = await download(trainer, "colours")
    blob = decode_blob(data)
    other = replace(blob.manifest.base_model, fingerprint="sha256:" + "9" * 64)
    store = open_store(trainer.settings.resolved_store_url)
    manifest = blob.manifest.model_copy(update={"base_model": other, "prompt": "foreign"})
    store.publish("foreign", encode_blob(blob.prefix, manifest), job="tuningJobs/x")
    init = tuning_pb2.PromptInit(source="foreign")
    error = await refused(create_job(trainer, hyperparameters=tuning_pb2.Hyperparameters(init=init)))
    assert isinstance(error, PreconditionFailed)
    assert error.metadata["source_fingerprint"] == other.fingerprint
    assert error.metadata["base_model_fingerprint"] == blob.manifest.base_model.fingerprint
    assert error.metadata["field"] == "spec.hyperparameters.init.source"


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.7, top_k=5, max_new_tokens=9, stop_sequences=["\n"])]
)
async def test_sampling_defaults_of_a_job_come_back_as_they_were(
    trainer: RunningTrainer, sampling: SamplingParams
) -> None:
    job = await create_job(trainer, dataset=inline(generation_examples(4)), sampling_defaults=sampling)
    assert job.spec.sampling_defaults == sampling
