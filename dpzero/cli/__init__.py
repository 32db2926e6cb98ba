"""The verbs of `python -m dpzero`, and the Python part of the Snakefile."""
