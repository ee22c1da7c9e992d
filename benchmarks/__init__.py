"""Speed, memory and quality, measured beside peers: one make target each, results in `results/`."""

from shared.native_libraries import set_native_defaults

set_native_defaults()  # as in the services
