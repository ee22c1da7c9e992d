"""The trainer: accepts tuning jobs, trains prompts on Ray workers and publishes versions.

`server` is the process, `parts` what it consists of, `servicers` the gRPC handlers. A job goes from `jobs` (submission,
admission) through `dispatch` to a worker of `cluster`, which runs `training`, and its result through `publish` to the
prompt store. `datasets` has the examples, `database` the SQL tables, `webhooks` notifies other programs, `maintenance`
cleans up. The service's own process never holds a model's weights: only its workers do, and a short-lived process for
imports (`proof`).
"""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # before modules of this package import torch
