"""`python -m softprompt.router` runs the router. Settings come from SOFTPROMPT_ROUTER_*."""

from __future__ import annotations

import sys

from shared.process.service import run_service
from softprompt.router.server import serve
from softprompt.router.settings import RouterSettings

if __name__ == "__main__":
    sys.exit(run_service(RouterSettings, serve, "Passes calls on to the replicas that serve their prompt."))
