"""Plain data of the engine: requests, running requests, step plans, statistics; and the pure rules of fairness.

Imports no torch. `request` is what a caller asks for and gets, `running_request` a request inside the engine, `plan`
what one step computes. `fair_share`, `preemption` and `step_pace` are arithmetic that the scheduler uses.
"""
