"""Benchmarks of speed, memory and quality, compared with peers. Each has a make target and writes JSON to results/."""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # as in the services
