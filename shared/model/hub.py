"""Whether the Hugging Face hub answers. Its client retries a server that accepts and never answers for minutes."""

from __future__ import annotations

import threading

HUB_TIMEOUT_SECONDS = 10.0


def answers(model: str, timeout_seconds: float = HUB_TIMEOUT_SECONDS) -> bool:
    """False if the hub says nothing about `model` in time. A refusal is an answer, and so is a connection that fails at
    once.
    """
    from huggingface_hub import HfApi

    done = threading.Event()

    def ask() -> None:
        try:
            HfApi().model_info(model, timeout=timeout_seconds)
        except Exception:  # the client lets its HTTP library's errors through; what it is, the download will say
            pass
        finally:
            done.set()

    threading.Thread(target=ask, name="ask the hub", daemon=True).start()
    return done.wait(timeout_seconds / 2)
