"""Fast fading of the radio links: one choice of `env/fading` per file."""
