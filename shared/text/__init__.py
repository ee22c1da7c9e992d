"""From an input to token ids: templates, special tokens, truncation. Training, evaluation, golden records and serving
share this code.

`template` renders and encodes an input, `rendering` runs a model's own chat template, `plain_text` keeps a user's words
from becoming control tokens, `truncation` cuts from the left, `golden_inputs` are the fixed inputs of golden records.
The other modules say something about texts: `similar_texts`, `repetition`, `counted`. Knows tokenizers, and no models,
torch or services: a caller brings the template, the texts and the tokenizer.
"""
