"""gRPC handlers of TuningService and PromptService: read the request, delegate, write the result.

`shared.wire` reads and writes messages; `jobs`, `dispatch`, `datasets` and `prompts` have the logic and raise the
errors of `shared.errors`, which `shared.rpc` turns into statuses. Nothing is decided or kept here.
"""
