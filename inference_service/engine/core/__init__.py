"""Plain data of the engine: requests, running requests, step plans, statistics; and the rules of fairness.

Imports no torch. `request` defines what a caller sends and receives, `running_request` a request inside the engine,
`plan` the content of one step. `fair_share`, `preemption` and `step_pace` are arithmetic that the scheduler uses.
"""
