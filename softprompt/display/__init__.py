"""Progress and results for people: on a terminal, in a log, in a notebook.

`training` and `transfer` show long work by `status`: some lines that are redrawn, or a line a minute where there is no
terminal. `chart` draws curves as text, `curve` with matplotlib; `notebook` and `html` do the same for Jupyter. It gets
values of `softprompt.types`, calls no service and imports no gRPC.
"""
