"""Image prompts for diffusion models."""
