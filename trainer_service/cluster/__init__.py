"""Workers: processes that hold one base model and train a cohort of jobs.

`interface` has the protocols that `dispatch` uses: a pool that launches workers, and a handle that takes tasks and
answers polls. `ray_pool` implements it on Ray. Inside a worker, `worker` runs the step loop over `training.cohort`;
`node_datasets` finds or fetches datasets. Only this package imports Ray. It knows no job database and no prompt store:
tasks come from `dispatch`, and events go back through its polls.
"""
