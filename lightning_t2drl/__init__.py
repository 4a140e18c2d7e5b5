"""Lightning-T2DRL: two-timescale model caching and resource allocation for edge-served generative AI."""

__version__ = "0.1.0"
