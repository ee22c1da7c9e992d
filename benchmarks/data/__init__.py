"""Memory and time of large datasets."""
