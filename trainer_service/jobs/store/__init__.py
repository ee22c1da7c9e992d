"""Jobs and their events as rows of the job database.

`job_store` is the interface: accepted jobs with their states and numbered events, leases and claims. Acknowledged
changes survive any crash. The other modules implement parts of it, each for some tables: the event log, listings,
visibility, tenants' shares, worker slots, expiry. `files` keeps checkpoints and unpublished results. All methods block
and are thread-safe.
"""
