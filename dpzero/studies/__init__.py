"""Experiments beside the sweeps over language models: the quadratic, guarantees, membership inference, audit, benchmark."""
