"""Text generation for many requests over one frozen model; no gRPC, Prometheus or store.

`engine` is the step loop: schedule, run, sample, update, collect. `live_requests` has the requests that are not ended.
`scheduler` plans each step and imports no torch. `async_engine` runs the engine in its own thread and offers an asyncio
interface, `delta_stream` holds what a consumer has not read. `build` assembles an engine for a model and a device.
`admission` and `self_check` refuse requests and models that the engine can't serve. `core` has the plain data, `kv` the
caches, `run` the device code, `text` the conversion of tokens to text. Requests come from `generation` and
`prompts.version_loader`.
"""
