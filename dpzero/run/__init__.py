"""From a cell to its record: train, account, checkpoint, evaluate."""
