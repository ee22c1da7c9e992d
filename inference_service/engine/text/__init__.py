"""From token ids to streamed text.

`detokenizer` turns the token ids of one answer into text of whole characters; `text_stream` adds stop sequences and the
end of the answer, and makes deltas of both. Knows the tokenizer, and no tensors and no queues: `live_requests` brings
the sampled tokens.
"""
