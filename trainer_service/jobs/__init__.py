"""Tuning jobs as data: what a caller requests, the effective settings, and everything that can happen to a job.

`model` has the values; `states` and `transitions` are the state machine, as pure functions; `store` keeps jobs and
their events in SQL. `submission` and `admission` turn a request into a queued job and refuse what can't be trained;
`sources` finds the prompt that a job starts from; `preparation` turns a claimed job into a task for a worker;
`fair_queue` orders tenants. `dispatch` assigns jobs to workers, and `publish` publishes their results. This package
imports neither Ray nor torch. Requests come from `servicers`, events of training from `dispatch`.

Queue libraries such as Celery or procrastinate run functions to their end. Training jobs share one worker, pause,
resume from checkpoints and are published exactly once, so most of this code would stay ours.
"""
