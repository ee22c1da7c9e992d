"""Held-out scores of a prompt and its rivals: the bare, instructed and few-shot model and the current version.

`evaluate` scores rows, `generate` writes answers for text metrics, `baselines` builds the rivals' inputs,
`shared_beginning` computes once what these share, `evaluator` runs them in slices between training steps, `golden`
makes the records that replicas replay.
"""
