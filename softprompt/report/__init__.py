"""A job's report as a page, as JSON and as CSV. Needs nothing but the standard library."""
