"""Training of soft prompts on a frozen model: torch, and no Ray, gRPC, database or store.

`cohort` is the step loop over the jobs of one base model, `run` the life of one job as a generator, `trainee` one
prompt with its optimizer. `data` turns examples into token ids, `attention` computes the forward and backward pass with
a shared prefix, `recipe` fills in hyperparameters, `evaluation` scores held-out examples. `spec` says what to train,
`events` what happened; both are plain data. Tasks come from `cluster.worker`, events go back through it.
"""
