"""The verbs of `python -m dpzero`, and what the Snakefile asks of Python."""
