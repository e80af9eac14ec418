"""From prompts and references to pictures: jobs, settings, base models, guidance."""
