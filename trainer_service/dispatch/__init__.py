"""Jobs on workers: which worker takes which job, and what happens when a worker, a trainer or a job fails.

`manager` is the front for the rest of the service. `dispatcher` runs the loop; `scheduler`, `worker_targets`,
`capacity` and `estimate` decide, as pure functions of plain data; `supervisor` follows one worker from launch to end;
`leases` keep this replica's jobs its own. Input comes from `jobs.store`, workers from `cluster`, finished jobs go to
`publish`. This package imports neither Ray nor torch.
"""
