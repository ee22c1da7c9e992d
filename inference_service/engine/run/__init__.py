"""The device code of a step: model runners, attention over the caches, sampling, scoring.

There is a runner for each cache: rows, paged, and rows for models that keep their attention to themselves.
`bisect_failure` finds the request that makes a step fail, `finite_check` the ones whose numbers are not finite.
"""
