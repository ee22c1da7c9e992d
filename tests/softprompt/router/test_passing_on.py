"""What the router passes on of a call, and what it bounds: metadata, certificates, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
from prompttuning.v1 import generation_pb2 as pb
from prompttuning.v1 import generation_pb2_grpc

from shared.errors import Overloaded, Unauthenticated
from shared.prompt.manifest import utc_now
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from softprompt.client.security import ClientSecurity
from softprompt.routing.ask import ROUTED_KEY
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import (
    blob,
    generate_request,
    matrix,
    publish,
    refusal,
    running_replica,
    stream_request,
)
from tests.shared.security.pki import Authority
from tests.softprompt.router.running import running_router
from tests.waiting import until

TOKEN = new_token()


async def test_a_call_is_passed_on_with_its_deadline_token_id_and_trace_and_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[float, dict[str, Any]]] = []

    class Witness(generation_pb2_grpc.GenerationServiceServicer):
        async def CountTokens(self, request: Any, context: Any) -> Any:
            seen.append((context.time_remaining(), dict(context.invocation_metadata())))
            return pb.CountTokensResponse()

    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(Witness(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    directory = ReplicaDirectory(open_store(str(tmp_path / "store")).backend)
    record = ReplicaRecord(
        id="witness", base_model="m", base_model_fingerprint="f", address=f"127.0.0.1:{port}", started_at=utc_now()
    )
    directory.put(record)
    try:
        async with running_router(tmp_path / "r", tmp_path / "store") as router:
            trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            metadata = (("authorization", "Bearer x"), ("x-request-id", "id-1"), ("traceparent", trace))
            cookie = (("cookie", "a=b"), ("data-bin", b"\xff"))
            await router.stub.CountTokens(pb.CountTokensRequest(), metadata=(*metadata, *cookie), timeout=500)
    finally:
        await server.stop(0)
    ((remaining, passed_on),) = seen
    assert 300 < remaining <= 500
    assert dict(metadata).items() <= passed_on.items()
    assert passed_on.keys() - dict(metadata).keys() == {"user-agent", ROUTED_KEY}


async def test_a_router_with_a_certificate_acts_for_no_caller_without_a_token(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    certificate, key = authority.issue("service").write(tmp_path)
    tls = {"tls_certificate_file": str(certificate), "tls_key_file": str(key)}
    callers = tmp_path / "callers.json"
    both = [
        {"name": "router", "roles": ["admin"], "certificates": ["service"]},
        {"name": "shop", "roles": ["generator"], "prompts": ["*"], "token_sha256": [hash_token(TOKEN)]},
    ]
    callers.write_text(json.dumps({"callers": both}))
    security = ClientSecurity(
        tls=True, ca_file=str(tmp_path / "ca.crt"), certificate_file=str(certificate), key_file=str(key)
    )
    publish(open_store(str(tmp_path / "store")), blob(tiny_model_dir, matrix(1)))
    settings: dict[str, Any] = {"callers_file": str(callers), "tls_client_ca_file": str(tmp_path / "ca.crt"), **tls}
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", store_dir=tmp_path / "store", host="localhost", **settings),
        running_router(tmp_path / "r", tmp_path / "store", security, host="localhost", **tls) as router,
    ):
        credentials = grpc.ssl_channel_credentials(root_certificates=authority.certificate)
        async with grpc.aio.secure_channel(f"localhost:{router.port}", credentials) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            assert isinstance(await refusal(stub.Generate(generate_request("hi", "tone"))), Unauthenticated)
            with_token = (("authorization", f"Bearer {TOKEN}"),)
            answer = await stub.Generate(generate_request("hi", "tone"), metadata=with_token)
            assert answer.start.version == "prompts/tone/versions/1"


async def test_requests_of_running_calls_are_bounded_in_bytes(
    tiny_model_dir: Path, tmp_path: Path, brake: Brake
) -> None:
    brake.holds = True
    store = open_store(str(tmp_path / "store"))
    publish(store, blob(tiny_model_dir, matrix(1)))
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", store_dir=tmp_path / "store"),
        running_router(tmp_path / "r", tmp_path / "store", max_request_bytes=100) as router,
    ):
        held = router.stub.GenerateStream(stream_request("hi " * 40, "tone", max_new_tokens=200, ignore_eos=True))
        await held.read()  # one alone may have any size
        error = await refusal(router.stub.Generate(generate_request("hi", "tone")))
        assert isinstance(error, Overloaded)
        assert error.retry_after_seconds > 0
        held.cancel()

        async def has_room() -> bool:
            try:
                await router.stub.CountTokens(pb.CountTokensRequest(input=pb.GenerationInput(prompt="tone", text="hi")))
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(has_room)
