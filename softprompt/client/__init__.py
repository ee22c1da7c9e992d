"""The client, asynchronous and blocking, over `prompttuning.v1`.

`async_client` joins the methods of `tuning`, `prompts`, `datasets` and `generation`; `sync_client` runs them in a
thread with an event loop. `connection`, `channel`, `calls` and `security` make a call; `resuming` and `stream` survive
lost connections; `convert` and `shared.wire` translate messages. Takes and returns the dataclasses of
`softprompt.types`. Knows nothing of the terminal; needs neither torch nor Ray.
"""
