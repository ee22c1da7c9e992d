"""Memory and time for large datasets."""
