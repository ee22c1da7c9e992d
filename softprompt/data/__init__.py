"""Data as people have it, read into training examples. Lenient here, since the services take one strict form only; see docs/data.md."""
