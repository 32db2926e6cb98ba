"""Tasks, their rows and prompts, few-shot draws, and tokenized examples."""
