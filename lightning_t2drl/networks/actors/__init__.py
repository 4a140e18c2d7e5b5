"""Actors: how a network's outputs become an action, one kind per file."""
