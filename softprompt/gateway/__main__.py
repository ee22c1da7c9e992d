"""`python -m softprompt.gateway` runs the gateway. Settings come from SOFTPROMPT_GATEWAY_*."""

from __future__ import annotations

import sys

from shared.process.service import run_service
from softprompt.gateway.server import serve
from softprompt.gateway.settings import GatewaySettings

if __name__ == "__main__":
    sys.exit(
        run_service(GatewaySettings, serve, "Serves OpenAI's HTTP API over the trainer and the inference service.")
    )
