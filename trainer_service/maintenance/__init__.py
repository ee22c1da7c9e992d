"""Housekeeping that runs beside the service: rounds with jitter that several trainers may run at once.

`prompt_store` compacts and collects garbage in the prompt store; `retention` thins events and removes old jobs and
unused datasets, and `retention_rounds` runs it; `storage_usage` measures what is stored. Each reports to an observer,
and a failure ends a round, not the service.
"""
