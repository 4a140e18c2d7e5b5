"""Who asks for what in every slot: one choice of `env/demand` per file."""
