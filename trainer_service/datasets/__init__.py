"""Datasets: from an upload, a file under a dataset root or examples in a request to checked, content-addressed files.

`store` keeps each dataset as JSON lines under the digest of its bytes; `ledger` records in the job database which
tenant has which dataset; `tenant_datasets` joins the two for callers. `upload`, `chunks` and `csv_upload` process
arriving bytes, `roots` opens file URIs. `training.data` defines the format of a line. This package knows no jobs,
workers or gRPC: `servicers` bring the bytes and the tenant.
"""
