"""Periodic maintenance: rounds with jitter, which several trainers may run at once.

`prompt_store` compacts the prompt store and removes unused blobs; `retention` thins events and removes old jobs and
unused datasets, and `retention_rounds` runs it; `storage_usage` measures the stored bytes. Each reports to an observer.
A failure ends a round, not the service.
"""
