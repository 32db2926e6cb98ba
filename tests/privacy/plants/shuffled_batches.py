"""Batches of shuffled epochs under the name of Poisson batches."""

from dpzero.privacy.sampling import SAMPLERS, ShuffledEpochs


class Poisson(ShuffledEpochs):
    name = "poisson"


SAMPLERS["poisson"] = Poisson
