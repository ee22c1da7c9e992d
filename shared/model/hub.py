"""Checks whether the Hugging Face hub answers: its client retries for minutes if a server accepts and never answers."""

from __future__ import annotations

import threading

HUB_TIMEOUT_SECONDS = 10.0


def answers(model: str, timeout_seconds: float = HUB_TIMEOUT_SECONDS) -> bool:
    """False if the hub doesn't answer a request about `model` in time. Errors count as answers."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:  # then the library refuses every request at once
        return True
    done = threading.Event()

    def ask() -> None:
        try:
            HfApi().model_info(model, timeout=timeout_seconds)
        except Exception:  # including errors of the HTTP library; the download will report them
            pass
        finally:
            done.set()

    threading.Thread(target=ask, name="ask the hub", daemon=True).start()
    return done.wait(timeout_seconds / 2)
