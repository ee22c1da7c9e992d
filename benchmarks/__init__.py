"""Speed, memory and quality, measured beside peers: one make target each, results in `results/`."""

from shared.openmp import wait_politely

wait_politely()  # as in the services
