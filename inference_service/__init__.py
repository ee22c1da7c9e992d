"""Serves a frozen language model with the soft prompts of a store."""

from shared.kernels.settings import set_native_defaults

set_native_defaults()  # here, since torch is imported by modules of this package
