"""Serves a frozen language model with the soft prompts of a store.

`server` is the process, `servicer` the handlers of GenerationService, `requests` and `generation` what they delegate
to: a request's checks, and its path through the engine. `prompts` follows the store and loads versions; `engine`
computes. Knows no jobs and no datasets: prompts come from the store, the model from its directory, requests from calls.
"""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # here, since torch is imported by modules of this package
