"""Training of soft prompts on a frozen model: torch, and no Ray, gRPC, database or store.

`cohort` is the step loop over the jobs of one base model, `passes` computes their work and isolates faulty jobs, `run`
trains one job as a generator, `outcome` is its result, `trainee` is one prompt with its optimizer. `data` turns
examples into token ids, `attention` computes the forward and backward pass with a shared prefix, `recipe` fills in
hyperparameters, `evaluation` scores held-out examples. `spec` describes what to train, `events` reports what happened;
both are plain data. `cluster.worker` delivers tasks and forwards events.
"""
