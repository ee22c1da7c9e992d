"""Serves a frozen language model with the soft prompts of a store."""

from shared.openmp import wait_politely

wait_politely()  # here, since torch is imported by modules of this package
