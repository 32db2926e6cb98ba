"""Models, tasks, prompts, tokenized examples, per-example losses and metrics."""
