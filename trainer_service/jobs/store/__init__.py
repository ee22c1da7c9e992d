"""Jobs and their events as rows of the job database.

`job_store` is the interface: the queue, claims and leases, over `job_records`, which has the jobs with their states and
numbered events. Acknowledged changes survive any crash. The other modules implement parts of it, each for some tables:
the event log, listings, visibility, tenants' shares, worker slots, expiry. `files` keeps checkpoints and unpublished
results. All methods block and are thread-safe.
"""
