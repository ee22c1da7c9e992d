"""Keys and values: where they are, who holds them, and how much memory they take.

`rows` and `blocks` keep the books and know no tensors; `kv_cache` and `paged_cache` hold the tensors; `prefix_cache`
holds the keys and values of soft prompts; `cache_layout` finds out what a model's attention layers need; `memory`
divides what is free.
"""
