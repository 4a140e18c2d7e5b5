"""Where users are and how they move: one choice of `env/mobility` per file."""
