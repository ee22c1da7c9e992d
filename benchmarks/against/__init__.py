"""Training and serving of this working tree compared with another commit, in one run."""
