"""The device code of a step: model runners, attention over the caches, sampling, scoring.

There are three runners: over rows, over a paged cache, and over rows for models whose attention can't be replaced.
`bisect_failure` finds the request that makes a step fail, `finite_check` finds requests whose numbers are not finite.
"""
