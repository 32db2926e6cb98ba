"""The study `doctor`: see `study`."""
