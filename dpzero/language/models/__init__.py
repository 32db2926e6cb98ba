"""Models, their weights and heads, what of them is trained, and their per-example losses."""
