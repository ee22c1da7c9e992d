"""The scheduler's fair shares, simulated on a virtual clock."""
