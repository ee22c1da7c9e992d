"""Hyperparameters and what they act on: defaults, initial prompts, schedules, the choice of the best checkpoint.

`defaults` fills in what a request leaves open, by the size of the data alone; what was measured for each value is in
docs/training.md. `init` and `reparameterise` make the initial prompt, `optimise` is AdamW with its schedule,
`selection` chooses among checkpoints.
"""
