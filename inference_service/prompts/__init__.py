"""Versions on one replica: which exist, which are loaded, which each alias serves.

`watcher` follows the store's log; `load_queue` and `version_loader` fetch a version, check it, compute its prefix and
replay its golden record; `registry` answers look-ups; `heartbeat` reports to the fleet what this replica serves and
refuses. The engine computes; this package doesn't.
"""
