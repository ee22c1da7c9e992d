"""Callers, their permissions and their limits. Knows no gRPC: `shared.rpc.guard` puts it before every call.

`authenticator` finds the caller of a token (`tokens`, `oidc`) or a certificate (`certificates`); `callers_file` has
their roles, prompts and limits; `methods` is the table of what each method requires; `quotas` counts and
refuses; `audit` writes who did what; `page_tokens` signs positions in lists. Its data are the operator's files and the
calls themselves; it stores nothing.
"""
