"""The trainer: accepts tuning jobs, trains soft prompts on Ray workers and publishes versions."""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # before modules of this package import torch
