"""Long-term gains of the radio links: one choice of `env/channel` per file."""
