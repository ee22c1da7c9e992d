"""A job's report as a page, as JSON and as CSV. Needs nothing but the standard library.

`page` puts together `curves`, `answers`, `distillation` and the words of `words`; `comparison` shows several reports
beside each other; `data` is the report as numbers. The report comes from the client (`JobReport`), complete; nothing
here calls a service, and a page makes no request.
"""
