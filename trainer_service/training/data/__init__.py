"""Examples: from lines of a dataset to token ids, and the choice of held-out examples.

`dataset` and `example_lines` read and check lines; `split` and `held_out` choose the held-out examples; `token_rows`
and `encoding` hold token ids in flat arrays that jobs share;
`dataset_facts` and `statistics` are reported to users. Imports no torch: a process that has only the tokenizer can
reject examples before they reach a worker.
"""
