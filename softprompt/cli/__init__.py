"""The command line `softprompt`.

`main` is the root command and adds the others, mostly one module each; `commands` knows the words that other tools use
for them. `options` and `field_options` have shared options, `output` writes tables and JSON, `failures` turns errors
into a message and an exit code. Only commands that call a service import gRPC, and none imports Ray or torch. Has no
logic of a domain: the data come from the client (`softprompt.client`), from `softprompt.local` and from files of the
user.
"""

from __future__ import annotations

import sys

try:
    from softprompt.cli.main import main
except KeyboardInterrupt:  # while the modules load, which can take seconds on a busy machine
    sys.exit(130)

__all__ = ["main"]
