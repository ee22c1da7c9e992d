"""What to type next, printed where a newcomer stops."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from softprompt.endpoints import (
    DEFAULT_GATEWAY_PORT,
    DEFAULT_INFERENCE_PORT,
    DEFAULT_TRAINER_PORT,
    GATEWAY_VARIABLE,
    INFERENCE_VARIABLE,
    TRAINER_VARIABLE,
)

_DEFAULTS = {
    TRAINER_VARIABLE: f"127.0.0.1:{DEFAULT_TRAINER_PORT}",
    INFERENCE_VARIABLE: f"127.0.0.1:{DEFAULT_INFERENCE_PORT}",
    GATEWAY_VARIABLE: f"http://127.0.0.1:{DEFAULT_GATEWAY_PORT}",
}
PROMPT, FILE = "my-prompt", "examples.jsonl"


def after_start(endpoints: Mapping[str, str]) -> list[str]:
    """Three commands for a second terminal. `endpoints` by variable; those that are not the default are exported."""
    changed = {name: address for name, address in endpoints.items() if address != _DEFAULTS.get(name)}
    exports = [f"export {name}={shlex.quote(address)}" for name, address in changed.items()]
    steps = (
        (f"softprompt init {FILE}", "a file of examples to change"),
        (f"softprompt tune {FILE} --prompt {PROMPT}", "train and publish"),
        (f"softprompt chat {PROMPT}", "ask it"),
    )
    return [*exports, *(f"{command:<58}# {about}" for command, about in steps)]
