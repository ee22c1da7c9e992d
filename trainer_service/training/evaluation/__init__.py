"""Held-out scores of a prompt and its rivals: the bare, instructed and few-shot model and the current version.

`evaluate` scores rows, `generate` writes answers for text metrics, `answers` keeps them for the report, `baselines`
builds the rivals' inputs, `shared_beginning` computes once what these share, `evaluator` runs them in slices between
training steps, `golden` makes the records that replicas replay. Knows no optimizer, gate or publication: `run` brings
the rows and the prompt, and `outcome` takes the results.
"""
