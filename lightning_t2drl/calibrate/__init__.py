"""Curves of quality and seconds against steps, measured on real generative models: what `t2drl calibrate` does."""
