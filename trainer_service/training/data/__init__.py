"""Examples: from lines of a dataset to token ids, and which of them are held out.

`dataset` and `example_lines` read and check lines; `split` and `held_out` choose the held-out examples; `token_rows`
and `encoding` hold token ids as int32 arrays that jobs share; `repetition` counts duplicates and contradictions;
`dataset_facts` and `statistics` are what is reported. No torch: a process that has only the tokenizer can refuse
examples before a worker is busy.
"""
