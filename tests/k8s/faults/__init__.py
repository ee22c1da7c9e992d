"""Faults of the kind that people make and that come up half broken in a cluster, each with an overlay and the check
that must catch it.
"""
