"""Tasks, their rows and prompts, few-shot draws and assets, without torch and without models."""
