"""Usage by hour in the job database: of generations, and of jobs.

`ledger` adds and reads rows, `lists` returns them in pages, `budgets` compares them with the tenants' budgets, and
`rounds` adds new segments and checks budgets while the trainer runs. Segments of generations come from replicas, which
publish them in the prompt store; those of jobs come from their ends. Knows no prices, callers or gRPC: `jobs.store`
calls `Budgets.check` when it stores a job.
"""
