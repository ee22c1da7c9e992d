"""One replica as a process: under more than it can do (`overload`), beside a greedy tenant (`neighbour`), under everything (`soak`)."""
