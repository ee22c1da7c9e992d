"""Prompt versions on one replica: the known ones, the loaded ones, and the target of each alias.

`watcher` follows the store's log; `load_queue` and `version_loader` fetch a version, check it, compute its prefix and
replay its golden records; `registry` answers look-ups; `heartbeat` reports to the fleet which versions this replica
serves and refuses. All data come from the prompt store; all computation is in the engine. Knows no requests or callers.
"""
