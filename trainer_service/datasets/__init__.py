"""Datasets: from an upload, a file under a dataset root or examples in a request to checked, content-addressed files.

`store` keeps each dataset as JSON lines under the digest of its bytes; `ledger` says, in the job database, which tenant
has which one; `tenant_datasets` is what callers see. `upload`, `chunks` and `csv_upload` take bytes that are still
arriving, `roots` opens file URIs, and `fields` names the place of an error in the caller's own terms. The format of a
line belongs to `training.data`. This package knows no jobs, workers or gRPC.
"""
