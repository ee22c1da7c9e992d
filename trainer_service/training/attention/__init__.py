"""One forward and backward pass over the packed rows of many jobs.

`packing` lays rows out without padding; `prefix_attention` lets all rows of a job attend to its prompt, which is
computed once; `last_layer` skips what no target reads; `row_memory` bounds what attention keeps; `forward` puts this
together for a loaded model and proves it against the model's own pass. It doesn't know jobs, optimizers or data sets.
"""
