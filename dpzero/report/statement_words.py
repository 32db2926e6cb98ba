"""The fixed sentences of the privacy statement. The dictionaries translate the values of a record."""

from __future__ import annotations

SETTING = (
    "Central: one trusted curator holds the data and trains. The promise holds against whoever sees all that is released and knows "
    "everything else but whether one unit is in the data: the base model, every setting, the seed of the directions. What stays "
    "secret is the run key, from which batches and noise are drawn, and which examples were in a batch.",
)
UNIT = {
    "example": "one example, a text with its label. Several examples of one person are several units",
    "user": "one user: all examples of a user count as one, their mean is what is clipped",
}
ADJACENCY = {
    "add_remove": "add or remove one unit. The number of units is treated as public all the same: the sampling rate needs it. So are "
    "the numbers of examples of each label, which few-shot splits fix",
    "replace_one": "replace one unit by another; their number is the same in both data sets, and public. So are the numbers of examples of "
    "each label, which few-shot splits fix",
}
RELEASED = {
    0: "in each step one noisy scalar a direction, the sum of what the batch's units contribute, each clipped. The directions are public",
    1: "in each step the noisy sum of the clipped gradients of the batch's units, as long as the trained parameters",
}
SAMPLER = {
    "poisson": "Poisson: in each step anew, each unit joins by itself with probability batch / n. The batch may be empty, which is a "
    "step like any other. That is what the accountant assumes",
    "without_replacement": "without replacement: in each step anew a uniform subset of exactly the batch size. That is what the "
    "accountant assumes",
    "random_allocation": "random allocation: in each pass over the data each unit is in exactly one batch, whichever the others are in. "
    "Batches differ in size and may be empty. That is what the accountant assumes",
    "full_batch": "all units in every step. No amplification by sampling is claimed",
    "shuffled_epochs": "the data in a new order each epoch, cut into batches, as public code does. No amplification by sampling is "
    "claimed",
}
KEY = {
    "secret": "from the operating system, written nowhere. Records and checkpoints of these runs hold what is on a list, each key with "
    "its reason (ALLOWED_IN_A_RELEASE in dpzero/run/record.py), and nothing else: no loss or score of private examples, no batch "
    "size, no clip rate, no time",
    "published": "derived from the published seed, so that a run replays bit for bit. Anyone can recompute the noise: a benchmark on "
    "public data, no private release. Its records also hold, without noise, learning curves (losses of batches, accuracies on dev), "
    "times and the digest of the data",
}
ARITHMETIC = {
    "float": "floating point. It does not defend against attacks on the low-order bits of a release (Mironov 2012)",
    "exact": "exact: clipped values are whole numbers of clip / 2^40, their sum is exact, the noise is a discrete law, so low-order "
    "bits tell nothing more. Gaussian noise costs at most (1 + exp(ε)) steps / (4 s²) of δ for it, s = 2^40 noise / clip",
}
ROUNDING = (
    "Losses are float32 whatever the arithmetic: the last bits of one example's loss may depend on the shape of its micro-batch, so on others.",
)
SECRECY = {
    "secret": "holds, since the key is secret",
    "published": "fails, since the key is published: an ε below is what the same run would spend under a secret key",
}
TUNING = (
    "Not accounted. Learning rates, clips, steps and what is trained were chosen outside the stated ε. Were they chosen on the private "
    "data, every try would be one more run on them; `python -m dpzero epsilon --tries` says what a random number of tries costs.",
)
CHOSEN_ON_DEV = (
    "The reported iterate was chosen by its loss on dev rows, as published code does. No dev row is a training row, so ε still holds for "
    "the training rows; dev rows have no protection.",
)
CHOSEN_WITH_NOISE = (
    "The reported iterate was chosen by a private choice (permute and flip) on the numbers of dev examples that each checkpoint answers "
    "right. Which rows are for training and which are dev is fixed and public: neighbours differ in one of the two. A training example has "
    "the guarantee of training, a dev example that of the choice, and what is stated is the larger.",
)
CONSTRUCTION = (
    "the sampler that is accounted is the one that draws; each unit is clipped by itself; a sum is divided by the batch size of the "
    "settings, never by the actual one; noise is drawn apart from the public directions."
)
PUBLIC_CODE = (
    "sampler, factor of the noise and divisor are those of public code, reproduced for comparison and marked as no valid release; the "
    "bound is for them."
)
ASSUMED = (
    "Assumed: one example's loss does not depend on another example (tested for the models of this project).",
    "ε is the highest of the seeds. μ is that of the least Gaussian mechanism (Dong, Roth and Su 2022) that loses as much at every ε "
    "where the run's δ is not below the one stated.",
)
NOT_COVERED = (
    "Pretraining: what the base model learnt from texts of its own, these among them or not.",
    "Choices made by people: task, prompt, label words, metric, lengths.",
    "Test data: scores on them are published without noise.",
    "Time: how long steps took, where an interrupted run was cut off, whether it ran out of memory. They follow the sizes of private "
    "batches: the record of a release holds no times, but whoever watches the machine, or the dates of its files, sees them.",
    "What a crash prints, and the counts of rows and tokens in the folder `assets` beside the records.",
)
