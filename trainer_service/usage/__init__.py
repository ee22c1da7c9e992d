"""Usage by hour in the job database: of generations, from the segments that replicas publish in the prompt store, and
of jobs, from their ends. `ledger` adds and reads them, `budgets` compares them with the tenants' budgets, `rounds` does
both while the trainer runs.
"""
