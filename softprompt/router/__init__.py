"""`softprompt router`: GenerationService for several base models at one address. `docs/routing.md` describes it."""
