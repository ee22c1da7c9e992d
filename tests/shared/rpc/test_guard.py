"""Authorisation over a real socket: tokens, roles, prompts, limits, audit, health, reflection, and stalled senders."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prompttuning.v1 import generation_pb2, tuning_pb2, tuning_pb2_grpc

from shared.errors import DeadlineExceeded, InvalidInput, Overloaded, PermissionDenied, Unauthenticated
from shared.rpc import messages
from shared.rpc.guard import address_of
from shared.security import audit
from shared.security.authenticator import FREE_FAILURES
from shared.security.tokens import hash_token, new_token
from tests.log_lines import log_lines
from tests.shared.rpc.service import SERVICE, Running, count_request, refusal, running_server
from tests.shared.security.issuer import AUDIENCE, ISSUER, Issuer

SHOP, VIEWER = new_token(), new_token()


@pytest.fixture
def callers_file(tmp_path: Path) -> Path:
    callers = [
        {
            "name": "shop",
            "roles": ["generator"],
            "prompts": ["support-*"],
            "token_sha256": [hash_token(SHOP)],
            "limits": {"tokens_per_second": 5, "concurrent_calls": 1},
        },
        {"name": "looker", "roles": ["viewer"], "token_sha256": [hash_token(VIEWER)]},
    ]
    path = tmp_path / "callers.json"
    path.write_text(json.dumps({"callers": callers}))
    return path


@pytest.fixture
async def running(callers_file: Path) -> AsyncIterator[Running]:
    async with running_server(callers_file=str(callers_file)) as made:
        yield made


@pytest.fixture
def audited() -> Iterator[list[dict[str, Any]]]:
    """The fields of audit lines, in order."""
    with log_lines(audit.LOGGER) as lines:
        yield lines


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


ALLOWED = count_request(prompt="support-tone")


async def test_a_valid_token_gets_through_with_any_spelling_of_bearer(running: Running) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (
            await running.stub.CountTokens(ALLOWED, metadata=(("authorization", f"{scheme} {SHOP}"),))
        ).input_tokens == 1


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", SHOP),),
        (("authorization", f"Basic {SHOP}"),),
        (("authorization", f"Bearer {SHOP}x"),),
        (("authorization", f"Bearer {SHOP[:-1]}"),),
        (("authorization", f"Bearer {hash_token(SHOP)}"),),
        (("authorization", f"Bearer {SHOP}"), ("authorization", f"Bearer {VIEWER}")),
        (("authorization", "Bearer " + "a" * 7000),),
        (("authorization-bin", f"Bearer {SHOP}".encode()),),
    ],
    ids=range(10),
)
async def test_a_caller_without_credentials_is_refused(running: Running, metadata: Any) -> None:
    error = await refusal(running.stub.CountTokens(ALLOWED, metadata=metadata))
    assert isinstance(error, Unauthenticated)
    assert SHOP not in error.message


async def test_roles_and_prompts_decide(running: Running) -> None:
    request = generation_pb2.GetModelInfoRequest()
    assert isinstance(await refusal(running.stub.CountTokens(ALLOWED, metadata=bearer(VIEWER))), PermissionDenied)
    error = await refusal(running.stub.CountTokens(count_request(prompt=""), metadata=bearer(SHOP)))
    assert isinstance(error, PermissionDenied), "the bare model"
    await running.stub.CountTokens(
        count_request(prompt="billing"), metadata=bearer(SHOP)
    )  # its handler finds no such prompt
    await running.stub.GetModelInfo(request, metadata=bearer(VIEWER))


async def test_tokens_are_counted_from_answers_and_the_wait_is_reported(running: Running) -> None:
    request = generation_pb2.GenerateRequest(input=generation_pb2.GenerationInput(prompt="support-tone"))
    begun = time.monotonic()
    await running.stub.Generate(request, metadata=bearer(SHOP))  # 100 tokens, of a window of 50
    call = running.stub.Generate(request, metadata=bearer(SHOP))
    error = await refusal(call)
    assert isinstance(error, Overloaded)
    assert 9.7 - (time.monotonic() - begun) <= error.retry_after_seconds <= 10.7
    assert ("grpc-retry-pushback-ms", "-1") in list(await call.trailing_metadata())


async def test_concurrent_calls_are_bounded_and_a_cancel_frees_its_place(running: Running) -> None:
    request = generation_pb2.GenerateStreamRequest(input=generation_pb2.GenerationInput(prompt="support-tone"))
    stream = running.stub.GenerateStream(request, metadata=bearer(SHOP))
    await stream.read()
    call = running.stub.CountTokens(ALLOWED, metadata=bearer(SHOP))
    assert isinstance(await refusal(call), Overloaded)
    assert ("grpc-retry-pushback-ms", "1000") in list(await call.trailing_metadata())
    stream.cancel()
    await running.servicer.closed.wait()
    await running.stub.CountTokens(ALLOWED, metadata=bearer(SHOP))


async def test_guessing_is_slowed_down_and_known_callers_go_on(running: Running) -> None:
    for _ in range(FREE_FAILURES):
        assert isinstance(
            await refusal(running.stub.CountTokens(ALLOWED, metadata=bearer(new_token()))), Unauthenticated
        )
    assert isinstance(await refusal(running.stub.CountTokens(ALLOWED, metadata=bearer(new_token()))), Overloaded)
    await running.stub.GetModelInfo(generation_pb2.GetModelInfoRequest(), metadata=bearer(VIEWER))
    await running.stub.CountTokens(ALLOWED, metadata=bearer(SHOP))


async def test_a_token_that_is_taken_away_ends_at_once(callers_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.security.json_file._LOOK_SECONDS", 0.0)
    async with running_server(callers_file=str(callers_file)) as running:
        await running.stub.CountTokens(ALLOWED, metadata=bearer(SHOP))
        callers_file.write_text(json.dumps({"callers": []}))
        assert isinstance(await refusal(running.stub.CountTokens(ALLOWED, metadata=bearer(SHOP))), Unauthenticated)


async def test_tokens_of_an_issuer_are_taken_by_subject_and_group(tmp_path: Path) -> None:
    callers = [
        {"name": "shop", "roles": ["generator"], "groups": ["shop-team"]},
        {"name": "boss", "roles": ["viewer"], "subjects": ["boss"]},
    ]
    (tmp_path / "callers.json").write_text(json.dumps({"callers": callers}))
    issuer = Issuer()
    settings: dict[str, Any] = {
        "oidc_issuer": ISSUER,
        "oidc_audience": AUDIENCE,
        "oidc_jwks_url": issuer.url,
        "callers_file": str(tmp_path / "callers.json"),
    }
    try:
        async with running_server(**settings) as running:
            await running.stub.CountTokens(count_request(), metadata=bearer(issuer.token()))
            for token, refused in (
                (issuer.token(sub="boss"), PermissionDenied),
                (issuer.token(groups=["others"]), PermissionDenied),
                (issuer.token(exp=1.0), Unauthenticated),
                (issuer.token(aud="others"), Unauthenticated),
            ):
                assert isinstance(
                    await refusal(running.stub.CountTokens(count_request(), metadata=bearer(token))), refused
                )
    finally:
        issuer.close()


async def test_health_is_open_and_reflection_is_for_callers(running: Running) -> None:
    health = await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(service="live"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert await reflection(running, ()) is grpc.StatusCode.UNAUTHENTICATED
    assert await reflection(running, bearer(VIEWER)) is None


async def test_health_and_reflection_can_be_closed(callers_file: Path) -> None:
    settings: dict[str, Any] = {
        "callers_file": str(callers_file),
        "health_access": "callers",
        "reflection_access": "off",
        "health_port": 0,
    }
    async with running_server(**settings) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(service="live"))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await reflection(running, bearer(VIEWER)) is grpc.StatusCode.UNIMPLEMENTED
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.server.health_port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="live"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def reflection(running: Running, metadata: Any) -> grpc.StatusCode | None:
    """The status of a reflection call that lists the services; None if it is answered."""
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    try:
        async for _ in stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata
        ):
            return None
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("no answer")


class Tuning(tuning_pb2_grpc.TuningServiceServicer):
    async def CancelTuningJob(self, request: Any, context: Any) -> Any:
        if request.name == "tuningJobs/bad":
            raise InvalidInput.of("name", "is bad")
        return tuning_pb2.CancelTuningJobResponse()


async def test_every_change_and_every_refused_one_is_audited(audited: list[dict[str, Any]]) -> None:
    async with running_server() as running:
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(Tuning(), running.server.grpc_server)
        stub = tuning_pb2_grpc.TuningServiceStub(running.channel)
        metadata = (("x-request-id", "r1"),)
        await stub.CancelTuningJob(tuning_pb2.CancelTuningJobRequest(name="tuningJobs/7"), metadata=metadata)
        await refusal(stub.CancelTuningJob(tuning_pb2.CancelTuningJobRequest(name="tuningJobs/bad"), metadata=metadata))
        await running.stub.CountTokens(count_request())
    lines = [(line["action"], line["result"], line["caller"], line["job"], line["request_id"]) for line in audited]
    action = "TuningService/CancelTuningJob"
    assert lines == [(action, "OK", "anonymous", "7", "r1"), (action, "INVALID_ARGUMENT", "anonymous", "bad", "r1")]


async def test_a_change_by_an_unknown_caller_is_audited(running: Running, audited: list[dict[str, Any]]) -> None:
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(Tuning(), running.server.grpc_server)
    stub = tuning_pb2_grpc.TuningServiceStub(running.channel)
    await refusal(stub.CancelTuningJob(tuning_pb2.CancelTuningJobRequest(name="tuningJobs/7")))
    await refusal(stub.CancelTuningJob(tuning_pb2.CancelTuningJobRequest(name="tuningJobs/7"), metadata=bearer(VIEWER)))
    assert [(line["caller"], line["result"]) for line in audited] == [
        ("unknown", "UNAUTHENTICATED"),
        ("looker", "PERMISSION_DENIED"),
    ]


async def test_a_change_that_a_limit_refuses_is_audited(tmp_path: Path, audited: list[dict[str, Any]]) -> None:
    file = tmp_path / "callers.json"
    entry = {
        "name": "hasty",
        "roles": ["tuner"],
        "token_sha256": [hash_token(SHOP)],
        "limits": {"requests_per_second": 1},
    }
    file.write_text(json.dumps({"callers": [entry]}))
    async with running_server(callers_file=str(file)) as running:
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(Tuning(), running.server.grpc_server)
        stub = tuning_pb2_grpc.TuningServiceStub(running.channel)
        request = tuning_pb2.CancelTuningJobRequest(name="tuningJobs/7")
        await stub.CancelTuningJob(request, metadata=bearer(SHOP))
        error = await refusal(stub.CancelTuningJob(request, metadata=bearer(SHOP)))
    assert isinstance(error, Overloaded)
    assert [(line["caller"], line["result"], line.get("job")) for line in audited] == [
        ("hasty", "OK", "7"),
        ("hasty", "RESOURCE_EXHAUSTED", None),
    ]


async def test_a_call_whose_request_never_comes_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FIRST_MESSAGE_SECONDS", 0.1)
    never = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    call = running.channel.stream_unary(f"/{SERVICE}/CountTokens")(nothing(), metadata=bearer(SHOP))
    assert isinstance(await refusal(call), DeadlineExceeded)


async def test_a_call_without_any_request_is_refused(running: Running) -> None:
    assert isinstance(
        await refusal(running.channel.stream_unary(f"/{SERVICE}/CountTokens")(iter([]), metadata=bearer(SHOP))),
        InvalidInput,
    )


async def test_messages_of_unknown_callers_are_not_read(running: Running) -> None:
    """The call is refused before the whole message has arrived."""
    never = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    assert isinstance(
        await refusal(running.channel.stream_unary(f"/{SERVICE}/CountTokens")(nothing())), Unauthenticated
    )


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-request-id", "a" * 500),),
        (("x-request-id", "a b"),),
        (("traceparent", "00-zz"),),
        (("traceparent", f"00-{'0' * 32}-{'1' * 16}-01"),),
        (("grpc-timeout", "-1S"),),
        (("x-unknown-bin", b"\x00\xff"),),
        tuple(("x-many", str(number)) for number in range(100)),
    ],
    ids=["long id", "id with a space", "no trace", "zero trace", "timeout", "binary", "many"],
)
async def test_odd_metadata_is_ignored(metadata: Any) -> None:
    async with running_server() as running:
        assert (await running.stub.CountTokens(count_request(), metadata=metadata)).input_tokens == 1


async def test_metadata_beyond_the_limit_is_refused_and_the_server_goes_on() -> None:
    async with running_server() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.CountTokens(count_request(), metadata=(("x-large", "a" * 100_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await running.stub.CountTokens(count_request())).input_tokens == 1


async def test_a_message_beyond_the_limit_is_refused_and_the_server_goes_on() -> None:
    async with running_server(max_message_bytes=1 << 20) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.CountTokens(count_request("a" * (2 << 20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await running.stub.CountTokens(count_request())).input_tokens == 1


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:1234", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1234", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:80", "::/64"),
        ("unix:", "unix:"),
    ],
)
def test_failures_are_counted_by_address_without_the_port(peer: str, address: str) -> None:
    assert address_of(peer) == address
