"""Periodic maintenance: rounds with jitter, which several trainers may run at once.

`rounds` runs the maintenance of the prompt store and `retention`, which thins events and removes old jobs and unused
datasets; `storage_usage` measures the stored bytes. Each reports to an observer. A failure ends a round, not the
service. Settings and the callers file say what is old; `jobs`, `datasets` and the store remove it. This package
doesn't know workers.
"""
