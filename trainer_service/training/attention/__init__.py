"""One forward and backward pass over the packed rows of many jobs.

`packing` lays rows out without padding; `prefix_attention` lets all rows of a job attend to its prompt, which is
computed once; `row_memory` bounds the memory of attention; `forward` combines these for a loaded model, skips positions
of the last layer that no target needs, and compares the result with the model's own pass, whose inputs `plain_inputs`
makes. It doesn't know jobs, optimizers or datasets: `passes` brings the rows and the prefixes.
"""
