"""The frozen base model: identity, fingerprint, loading, and checks that it accepts soft prompts. Imports torch."""
