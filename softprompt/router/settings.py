"""Settings of the router. TLS towards the replicas is set by the client's own variables, SOFTPROMPT_TLS*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.config import RpcSettings, settings_config
from softprompt.endpoints import DEFAULT_ROUTER_PORT


class RouterSettings(RpcSettings):
    """Read from the environment, once, at the start."""

    model_config = settings_config("SOFTPROMPT_ROUTER_")

    port: int = Field(default=DEFAULT_ROUTER_PORT, ge=0, le=65535)
    """Port of the gRPC server; 0 chooses a free port."""
    store_url: str = Field(min_length=1)
    """Prompt store with the replicas' records: a directory, or an object store's URL."""
    store_timeout_seconds: float = Field(default=30, ge=0.1, le=600)
    """Time limit of each request to the prompt store."""
    poll_seconds: float = Field(default=0.0, ge=0, le=3600)
    """Time between two polls of the store; 0: the store's default (0.15 s for a directory, 2 s for an object store)."""
    models_file: Path | None = None
    """JSON file of base models (docs/models.md). A call for one whose `replicas.least` is 0 waits for a replica that
    starts. It is read again when it changes.
    """
    wait_seconds: float = Field(default=300, gt=0, le=3600)
    """Longest wait of such a call, unless the file has a `replicas.launch_seconds` for its base model; then it fails
    with UNAVAILABLE.
    """
    max_waiting: int = Field(default=1000, ge=1, le=1_000_000)
    """Most waiting calls; further ones are refused with RESOURCE_EXHAUSTED."""
    max_waiting_bytes: int = Field(default=256 << 20, ge=1, le=1 << 40)
    """Most bytes of the requests of waiting calls together; further ones are refused with RESOURCE_EXHAUSTED."""
    max_request_bytes: int = Field(default=1 << 30, ge=1, le=1 << 40)
    """Most bytes of the requests of all calls in the router together; further ones are refused with
    RESOURCE_EXHAUSTED.
    """
    default_base_model: str = ""
    """Id of the base model for requests without a prompt that name none; empty: they are refused if there are several.
    """
