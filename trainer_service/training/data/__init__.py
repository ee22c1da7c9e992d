"""Examples: from lines of a dataset to token ids, and the choice of held-out examples.

`dataset` and `example_lines` read and check lines, `places` names them in errors; `split` and `held_out` choose the
held-out examples; `token_rows` and `encoding` hold token ids in flat arrays that jobs share, `token_weights` weighs
them; `dataset_facts` are what is known of a dataset before a job reads it. Imports no torch: a process that has only
the tokenizer can reject examples before they reach a worker.
"""
