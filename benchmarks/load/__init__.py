"""One replica as a process, under more than it can do (`overload`) and under everything at once for a long time (`soak`)."""
