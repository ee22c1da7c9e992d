"""Text generation for many requests over one frozen model; no gRPC, Prometheus or store.

`engine` is the step loop: schedule, run, sample, update, collect. `scheduler` plans each step and imports no torch;
`async_engine` gives the engine a thread and an asyncio face; `build` puts an engine together for a model and a device;
`admission` and `self_check` refuse what it can't serve. `core` has the plain data, `kv` the caches, `run` the device
code, `text` the way from tokens to text. Requests come from `generation` and `prompts.version_loader`.
"""
