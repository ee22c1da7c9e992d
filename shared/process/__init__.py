"""A service's process and its machine.

`service` is the life cycle from settings to exit code; `surroundings` and `standard_streams` adapt to what started the
process; `threads`, `compute_thread`, `allocator` and `free_memory` divide processors and memory within the limits that
`container_limits` reads; `call_pool` calls an external system with a time limit, `daemon_thread` runs one long
function; `proxies` and `user_cache` find this machine's proxies and directories. Knows no gRPC, models or stores. Its
data come from the operating system and the environment.
"""
