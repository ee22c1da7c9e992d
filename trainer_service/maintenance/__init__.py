"""Periodic maintenance: rounds with jitter, which several trainers may run at once.

`rounds` runs the maintenance of the prompt store and `retention`, which thins events and removes old jobs and unused
datasets; `storage_usage` measures the stored bytes. Each reports to an observer. A failure ends a round, not the
service. What is old is said by settings and the callers file; jobs, datasets and the store do the removing. Knows no
workers.
"""
