"""The fixed sentences of the privacy statement. The dictionaries explain the values of a record."""

from __future__ import annotations

THREAT_MODEL = (
    "Central: one trusted curator holds the data and trains. The adversary sees every release and knows "
    "everything else except whether one unit is in the data: the base model, every setting, the seed of the "
    "directions. The run key, from which batches and noise are drawn, stays secret, and so does the "
    "membership of each batch.",
)
UNIT = {
    "example": "one example, a text with its label. Several examples of one person are several units",
    "user": "one user: all examples of a user count as one, and their mean is clipped",
}
ADJACENCY = {
    "add_remove": "add or remove one unit. The number of units is public all the same, since the sampling "
    "rate needs it. So are the numbers of examples of each label, which few-shot splits fix",
    "replace_one": "replace one unit by another; both data sets have the same number of units, which is "
    "public. So are the numbers of examples of each label, which few-shot splits fix",
}
RELEASED = {
    0: "in each step one noisy scalar a direction, the sum of the clipped contributions of the batch's "
    "units. The directions are public",
    1: "in each step the noisy sum of the clipped gradients of the batch's units, as long as the trainable "
    "parameters",
}
SAMPLER = {
    "poisson": "Poisson: in each step, each unit joins independently with probability batch / n. An empty "
    "batch is a step like any other. The accountant assumes this sampler",
    "without_replacement": "without replacement: in each step a new uniform subset of exactly the batch "
    "size. The accountant assumes this sampler",
    "random_allocation": "random allocation: in each pass over the data each unit is in exactly one batch, "
    "independently of the others. Batches differ in size and may be empty. The accountant assumes this "
    "sampler",
    "full_batch": "all units in every step. No amplification by sampling is claimed",
    "shuffled_epochs": "the data in a new order each epoch, cut into batches, as public code does. No "
    "amplification by sampling is claimed",
}
KEY = {
    "secret": "from the operating system, written nowhere. Records and checkpoints of these runs hold only "
    "the keys of an allow-list (ALLOWED_IN_A_RELEASE in dpzero/run), each with its reason: no loss or score "
    "of private examples, no batch size, no clip rate, no time",
    "published": "derived from the published seed, so that a run replays bit for bit. Anyone can recompute "
    "the noise: a benchmark on public data, no private release. Its records also hold, without noise, "
    "learning curves (losses of batches, accuracies on dev), times and the digest of the data",
}
ARITHMETIC = {
    "float": "floating point. It does not defend against attacks on the low-order bits of a release (Mironov "
    "2012)",
    "exact": "exact: clipped values are integer multiples of clip / 2^40, their sum is exact and the noise "
    "has a discrete law, so that low-order bits tell nothing more. For this, Gaussian noise costs at most (1 "
    "+ exp(ε)) steps / (4 s²) of δ, s = 2^40 noise / clip",
}
ROUNDING = (
    "Losses are float32 in either arithmetic: the last bits of one example's loss may depend on the shape of "
    "its micro-batch, and so on other examples.",
)
SECRECY = {
    "secret": "holds, since the key is secret",
    "published": "fails, since the key is published: an ε below is what the same run would spend under a "
    "secret key",
}
TUNING = (
    "Not accounted. Learning rates, clips, steps and the trainable parameters were chosen outside the stated "
    "ε. If they were chosen on the private data, every trial would be one more run on them; `python -m "
    "dpzero epsilon --tries` gives the cost of a random number of trials.",
)
CHOSEN_ON_DEV = (
    "The reported checkpoint was selected by its loss on dev rows, as published code does. No dev row is a "
    "training row, so ε still holds for the training rows; dev rows have no protection.",
)
CHOSEN_WITH_NOISE = (
    "The reported checkpoint was selected privately (permute and flip) by the number of dev examples that "
    "each checkpoint answers correctly. The split into training and dev rows is fixed and public: neighbours "
    "differ in one of the two. A training example has the guarantee of training, a dev example that of the "
    "selection, and the larger of the two is stated.",
)
CONSTRUCTION = (
    "the sampler that is accounted is the one that draws; each unit is clipped by itself; a sum is divided "
    "by the batch size of the settings, never by the actual one; noise and public directions are drawn "
    "independently."
)
PUBLIC_CODE = (
    "sampler, noise factor and divisor are those of public code, reproduced for comparison and marked as no "
    "valid release; the bound holds for them."
)
ASSUMED = (
    "Assumed: one example's loss does not depend on another example (tested for the models of this project).",
    "ε is the highest of the seeds. μ: the least Gaussian mechanism (Dong, Roth and Su 2022) whose loss is "
    "at least that of the run at every ε with δ not below the stated one.",
)
NOT_COVERED = (
    "Pretraining: what the base model learnt from its own texts, whether they contain these or not.",
    "Choices made by people: task, prompt, label words, metric, lengths.",
    "Test data: scores on them are published without noise.",
    "Time: the duration of steps, where an interrupted run was cut off, whether it ran out of memory. They "
    "depend on the sizes of private batches. The record of a release holds no times, but an observer of the "
    "machine, or of the dates of its files, sees them.",
    "The output of a crash, and the counts of rows and tokens in the folder `assets` beside the records.",
)
