"""Load tests of one replica process: `overload`, `neighbour` (a greedy tenant) and `soak` (mixed traffic)."""
