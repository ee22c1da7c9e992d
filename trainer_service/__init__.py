"""Takes tuning jobs, trains soft prompts on Ray workers, publishes versions."""

from shared.openmp import wait_politely

wait_politely()  # here, since torch is imported by modules of this package
