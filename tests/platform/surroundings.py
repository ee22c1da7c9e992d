"""What docs/platform.md finds on the machine: PostgreSQL, an S3 server, three tiny base models, a receiver of webhooks.

`python -m tests.platform.surroundings DIRECTORY` writes `surroundings.env`, whose variables name them, and
`received.jsonl`, the verified webhooks; it runs until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.s3_server import s3_server
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.postgres import Postgres, find_binaries
from tests.trainer_service.webhooks.receiver import SECRET, Received, receiver

MODELS = {"small": 64, "medium": 96, "large": 128}
"""Hidden sizes by name."""


def main() -> int:
    directory, stop = Path(sys.argv[1]), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    binaries = find_binaries()
    assert binaries is not None, "PostgreSQL is not installed"
    for seed, (name, hidden_size) in enumerate(MODELS.items()):
        save_tiny_llama(directory / "models" / name, seed, hidden_size=hidden_size)
    received = directory / "received.jsonl"
    with (
        TemporaryDirectory(prefix="pg-") as place,
        receiver() as webhooks,
        received.open("a") as log,
        s3_server() as storage,
    ):

        def write(event: Received) -> int:
            log.write(json.dumps({"type": event.type, **event.data}) + "\n")
            log.flush()
            return 204

        webhooks.answer = write
        database = Postgres(binaries, Path(place))
        database.start()
        try:
            variables = {
                **storage,
                "STAGING_DATABASE": database.create_database("staging"),
                "PRODUCTION_DATABASE": database.create_database("production"),
                "WEBHOOK_URL": webhooks.url,
                "WEBHOOK_SECRET": SECRET,
            }
            lines = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
            (directory / "surroundings.env").write_text(lines)
            stop.wait()
        finally:
            database.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
