"""Keys and values: their place, their holders, and their memory.

`rows` and `blocks` do the bookkeeping without tensors; `kv_cache` and `paged_cache` hold the tensors; `prefix_cache`
holds the keys and values of prefixes, which `key_values` reads from versions that have them; `cache_layout` finds out
what a model's attention layers need. Knows no requests, sampling or text: the scheduler asks for rows and blocks, the
runners of `run` write and read them, and prefixes come from `prompts.version_loader` through the engine.
"""
