"""One run from a command line: configs, output directory, training, resuming, evaluation, reports."""
