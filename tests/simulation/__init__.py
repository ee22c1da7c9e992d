"""Deterministic simulation of trainers, replicas and clients: one seed, one process, one thread, virtual time.

`python -m tests.simulation SEED` runs one life and prints what a checker finds wrong with its history. The code under
test is the product's; the simulation replaces what it stands on: the event loop and its clock (`loop`), threads
(`CallPool`), wall clocks and random numbers (`machine`), the object store (`storage`), the workers (`workers`) and the
connections between routers and replicas (`routers`).

The method is that of FoundationDB (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value Store",
SIGMOD 2021, section 4).
"""
