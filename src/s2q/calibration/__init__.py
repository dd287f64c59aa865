"""From prompts to the samples worth calibrating on."""
