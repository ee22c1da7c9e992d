"""The device code of a step: model runners, attention over the caches, sampling, scoring.

There are three runners: over rows (`model_runner`), over a paged cache (`paged_runner`), and over rows for models whose
attention can't be replaced (`row_runner`); `decode_graphs` captures decode steps on a GPU. `sampler` and `token_choice`
choose tokens, `scoring` computes log-probabilities. `bisect_failure` finds the request that makes a step fail,
`finite_check` finds requests whose numbers are not finite. Knows torch, the model and the caches of `kv`, and no queue,
text or fairness: the scheduler's plan says what to compute.
"""
