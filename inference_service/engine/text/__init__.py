"""From token ids to streamed text: detokenizing and stop sequences. Knows no tensors and no queues."""
