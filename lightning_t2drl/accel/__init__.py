"""Code that is fast because it is unusual; each trick has its row in the benchmark."""
