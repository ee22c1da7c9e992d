"""Real processes that are killed at random under load. `docs/reliability.md` describes it."""
