"""Assigns jobs to workers and handles failures of workers, trainer replicas and jobs.

`manager` is the interface for the rest of the service. `dispatcher` runs the loop; `scheduler`, `worker_targets`,
`capacity` and `estimate` decide, as pure functions of plain data; `supervisor` follows one worker from launch to end,
and `jobs_on_worker` stores what its events mean; `leases` renews the leases of this replica's jobs. Jobs come from
`jobs.store`, workers from `cluster`; trained jobs go to `publish`. This package imports neither Ray nor torch.
"""
