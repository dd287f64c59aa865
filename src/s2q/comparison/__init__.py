"""Many quantizations of one pipeline, compared on the same held-out prompts."""
