"""Hyperparameters: defaults, initial prompts, schedules, and the choice of the best checkpoint.

`defaults` fills in the values that a request leaves open, by the size of the data alone; docs/training.md has the
measurements behind each value. `init`, `demonstrations` and `leaves` make the initial prefix, `optimise` is AdamW with
its schedule, `selection` chooses among checkpoints. Knows no jobs, passes or datasets: `jobs.admission` asks for
defaults, `run`, `start` and `trainee` use the rest.
"""
