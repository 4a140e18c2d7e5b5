"""One run from what the user typed: configs, command line, output directory, reports."""
