"""Plain data of the engine: requests, running requests, step plans, statistics, settings; and the rules of fairness.

Imports no torch, and knows neither caches nor models. `request` defines what a caller sends and receives,
`running_request` a request inside the engine, `plan` the content of one step, `stats` what the service's metrics show.
`fair_share`, `preemption`, `step_pace` and `late_masks` are arithmetic for the scheduler; `integrity` is the error of
inconsistent bookkeeping. Requests come from `generation` through `async_engine`, settings from
`inference_service.config`, which inherits `config`.
"""
