"""Takes tuning jobs, trains soft prompts on Ray workers, publishes versions."""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # here, since torch is imported by modules of this package
