"""Peak memory of a training step: tracked, predicted on fake tensors, measured."""
