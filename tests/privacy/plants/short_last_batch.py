"""The data cut into batches, the last one short, each divided by its own size, with noise for the full size."""

from dpzero.privacy.budget import Budget
from dpzero.privacy.sampling import SAMPLERS, WithoutReplacement


class Cut(WithoutReplacement):
    def batch(self, step):
        whole = self.dataset_size // self.batch_size
        rest = self.dataset_size % self.batch_size
        return super().batch(step)[: rest if rest and step % (whole + 1) == whole else None]


release = Budget.release
Budget.release = lambda self, clipped, clip: (
    release(self, 0 * clipped, clip) + float(clipped.sum()) * self.batch_size / max(1, len(clipped))
)
SAMPLERS["without_replacement"] = Cut
