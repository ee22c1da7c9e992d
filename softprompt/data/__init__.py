"""Readers of training examples in many formats. They are lenient; the services accept one strict form.

`files` recognises a format by the first bytes; `tables`, `sheets`, `json_rows`, `text_lines` and `python_rows` yield
rows with their place in the source; `layout` finds the columns of input and target, `examples` and `messages` make the
strict form; `problems` collects what is unusable. Knows no service: `prepare` gives the result to the client.
`docs/data.md` describes the formats.
"""
