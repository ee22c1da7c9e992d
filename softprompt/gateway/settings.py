"""Settings of the gateway. TLS towards the services is set by the client's own variables, SOFTPROMPT_TLS*."""

from __future__ import annotations

from pydantic import Field

from shared.config import ListenerSettings, settings_config
from softprompt.endpoints import DEFAULT_GATEWAY_PORT


class GatewaySettings(ListenerSettings):
    """Read from the environment, once, at the start."""

    model_config = settings_config("SOFTPROMPT_GATEWAY_")

    port: int = Field(default=DEFAULT_GATEWAY_PORT, ge=0, le=65535)
    """Port of the HTTP server; 0 chooses a free port."""
    trainer: str = ""
    """Address of the trainer service; empty: SOFTPROMPT_TRAINER, else 127.0.0.1:50051."""
    inference: str = ""
    """Address of the inference service; empty: SOFTPROMPT_INFERENCE, else 127.0.0.1:50052.

    `dns:///name:port` balances requests over all replicas of a name. `store:URL` finds the replicas of all base models
    by their records in that prompt store.
    """
    call_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Deadline of a call to a service, except generations and uploads."""
    generation_seconds: float = Field(default=600.0, gt=0, le=86_400)
    """Deadline of an answer."""
    body_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Time within which a request's body must arrive; an upload has longer, by its size."""
    max_body_bytes: int = Field(default=4 << 20, ge=1 << 10, le=1 << 28)
    """Maximum size of a request's body, except uploads."""
    max_file_bytes: int = Field(default=256 << 20, ge=1 << 10, le=1 << 34)
    """Maximum size of an uploaded file; the trainer's own limits apply, too."""
    max_uploads: int = Field(default=4, ge=1, le=256)
    """Maximum number of uploads at the same time; further ones are refused with 429."""
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    """Maximum number of open connections; requests on further ones are refused with 503."""
    max_choices: int = Field(default=16, ge=1, le=128)
    """Maximum number of answers to one request: `n`, times the number of texts in `prompt`."""
