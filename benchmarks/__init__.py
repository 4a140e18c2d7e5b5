"""How fast the project is, beside plain code and peers: `python -m benchmarks`, see `benchmarks/__main__.py`."""
