"""Keys and values: their place, their holders, and their memory.

`rows` and `blocks` do the bookkeeping without tensors; `kv_cache` and `paged_cache` hold the tensors; `prefix_cache`
holds the keys and values of soft prompts; `cache_layout` finds out what a model's attention layers need.
"""
