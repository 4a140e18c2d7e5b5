"""The shipped configs: a tree of YAML files that Hydra composes."""
