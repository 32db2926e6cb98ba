"""The known pitfalls of private training, P1 to P32: a test for each, on the code that runs.

If another file has the test, a comment names it. Each statistical test fails by chance below 1e-6.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from baselines.dp_sgd import DPSGD
from baselines.dp_zo import DPZO
from dpzero import DPZero
from dpzero import __main__ as command_line
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.privacy.hyperparameter_selection import Tries
from dpzero.privacy.mechanisms import ARITHMETICS
from dpzero.privacy.sampling import SAMPLERS, ShuffledEpochs
from tests import planted

# The module's own filter does not reach into pytest
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

SIZE, BATCH_SIZE, STEPS = 50, 8, 10  # the batch size does not divide the size
SETTING = Setting("gaussian", "poisson", "add_remove", SIZE, BATCH_SIZE, STEPS, 1e-5)
CLIP, SMOOTHING = 0.5, 2.0**-9
METHODS = (DPZero, DPZO, DPSGD)
INPUTS = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(0))
NOBODY = np.zeros(0, np.int64)

every_method = pytest.mark.parametrize("kind", METHODS)


class Loss:
    """Squared error on INPUTS times `slope`, in parts for the methods that take gradients."""

    def __init__(self, slope: float = 1.0, part: int = 1000) -> None:
        self.slope, self.part = slope, part

    def parts(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        return (batch[i : i + self.part] for i in range(0, len(batch), self.part))

    def __call__(self, model: nn.Module, batch: np.ndarray) -> torch.Tensor:
        assert len(batch), "the model was asked about nobody"
        return self.slope * (model(INPUTS[torch.as_tensor(batch)])[:, 0] - 1) ** 2


def linear(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes or (5, 1))]
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def budget(noise_scale=1.0, key=None, ledger=None, arithmetic=None, **change) -> Budget:
    options = {"noise_arithmetic": arithmetic}
    return Budget(replace(SETTING, **change), noise_scale, key or RunKey.published(0), ledger, **options)


def stand_in_budget(noise_scale=1.0, key=None, **options) -> StandInBudget:
    """A stand-in budget for the test's own batches."""
    return StandInBudget(SETTING, noise_scale, key, **options)


def make(kind, private_budget: Budget, model=None, loss=None, **settings):
    settings = {"learning_rate": 0.01, "clip": CLIP} | settings
    if kind is not DPSGD:
        settings = {"smoothing": SMOOTHING} | settings
    return kind(model or linear(), loss or Loss(), private_budget, **settings)


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def released_mean(method, batch) -> np.ndarray:
    """The release of one step over the expected batch size, in units of the clip."""
    before = weights(method.model).double()
    scalar = method.step(batch)
    if scalar is None:
        return (
            (before - weights(method.model).double()) / method.optimizer.param_groups[0]["lr"] / method.clip
        ).numpy()
    return np.array([scalar * (2 * SMOOTHING if isinstance(method, DPZO) else 1) / method.clip])


class Watching:
    """A budget that keeps each sum before noise, the clip, and the release."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[tuple[torch.Tensor, float, torch.Tensor]] = []

    def release(self, clipped, clip):
        noisy = super().release(clipped, clip)
        self.seen.append((clipped.sum(0, keepdim=True), clip, torch.tensor([noisy])))
        return noisy

    def release_(self, clipped_sums, clip):
        before = torch.cat([s.flatten() for s in clipped_sums]).double()
        super().release_(clipped_sums, clip)
        self.seen.append((before, clip, torch.cat([s.flatten() for s in clipped_sums]).double()))


class Watched(Watching, Budget):
    pass


class WatchedStandInBudget(Watching, StandInBudget):
    pass


# P1: noise from the generator that the direction has just seeded ------------------------------------------


def public_step(weights: list[torch.Tensor], data: torch.Tensor, seed: int) -> tuple[float, float]:
    """Public code: the direction seed seeds the global generator, and the noise is its next number. -> (sum,
    release)
    """

    def loss_after_moving(scale: float) -> torch.Tensor:
        torch.manual_seed(seed)
        for w in weights:
            w += scale * torch.randn(w.shape)
        return (data @ weights[0] + weights[1]) ** 2

    plus, minus = loss_after_moving(1e-3), loss_after_moving(-2e-3)
    clipped = ((plus - minus) / 2e-3).clamp(-1, 1).sum()
    return clipped.item(), (clipped + 4.0 * torch.randn(1)).item()


def test_p01_public_noise_follows_from_the_direction_seed():
    for seed, rows in [(3, 5), (3, 17), (999_999_999, 40)]:
        secret, released = public_step([torch.ones(5), torch.zeros(1)], INPUTS[:rows], seed)
        torch.manual_seed(seed)  # the attacker knows the seed and the shapes, and has never seen the data
        _ = torch.randn(5), torch.randn(1)
        noise = 4.0 * torch.randn(1).item()
        assert abs(noise) > 0.1 and released - noise == pytest.approx(secret, abs=1e-5)


def scalars(method, steps: int) -> np.ndarray:
    """Releases of a zeroth-order method on empty batches: the noise alone. The weights stay."""
    released = []
    for _ in range(steps):
        released.append(method.projected_gradient(torch.zeros(0)))
        method.steps_taken += 1
    return np.array(released)


def transcript(key: RunKey, steps=2000) -> np.ndarray:
    return scalars(make(DPZero, stand_in_budget(key=key), seed=0), steps)


def test_p01_our_noise_does_not_follow_from_public_seeds():
    """An adversary with the seed, all earlier releases and another run of the same seed learns nothing of the
    next number.
    """
    noise, other = transcript(RunKey.secret()), transcript(RunKey.secret())
    public = torch.randn(len(noise), 4, generator=torch.Generator().manual_seed(0)).numpy()
    guesses = [other, *public.T, *(np.roll(noise, lag) for lag in (1, 2, 3))]
    for guess in guesses:  # six standard deviations: 2e-9 each by chance
        assert abs(np.corrcoef(noise, guess)[0, 1]) < 6 / len(noise) ** 0.5
    assert not set(noise) & set(other)


def test_p01_the_key_is_in_no_artefact(tmp_path):
    private_budget = budget(key=RunKey.secret(), ledger=tmp_path / "ledger")
    method = make(DPZero, private_budget)
    for batch in private_budget.batches():
        method.step(batch)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    (tmp_path / "record.json").write_text(json.dumps(private_budget.statement(CLIP, 2.0)))
    for file in tmp_path.iterdir():
        content, key = file.read_bytes(), private_budget.key.key
        assert not any(form in content for form in (key, key.hex().encode(), str(list(key)).encode())), file


# P1, statically: test_randomness.py::test_the_privacy_room_uses_no_global_generator


# P2: streams that are not separated -----------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_p02_the_direction_seed_changes_neither_batches_nor_noise(arithmetic):
    """With a constant loss the release is the noise alone."""
    runs, ends = [], []
    for seed in (0, 1):
        private_budget = Budget(SETTING, 1.0, RunKey.published(0), noise_arithmetic=arithmetic)
        method = make(DPZero, private_budget, loss=Loss(slope=0.0), seed=seed)
        runs.append([(method.step(batch), batch.tolist()) for batch in private_budget.batches()])
        ends.append(weights(method.model))
    assert runs[0] == runs[1] and not torch.equal(*ends)


def test_p02_under_secret_keys_no_seed_determines_batches_or_noise():
    first, second = (list(budget(key=RunKey.secret()).batches()) for _ in range(2))
    one, two = (make(DPZero, stand_in_budget(key=RunKey.secret()), seed=0) for _ in range(2))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))  # equal by chance: 1e-80
    assert all(one.step(batch) != two.step(batch) for batch in first)


def test_p02_noise_and_directions_are_unrelated():
    noise = transcript(RunKey.published(0))
    z = torch.zeros(len(noise), 4)
    law = make(DPZero, stand_in_budget(), seed=0).law
    for step in range(len(noise)):
        law.add_([z[step]], step, 1.0)
    for element in z.T.numpy():  # six standard deviations: 2e-9 by chance
        assert abs(np.corrcoef(noise, element)[0, 1]) < 6 / len(noise) ** 0.5


# P3: shuffled fixed batches accounted as Poisson ----------------------------------------------------------


def far_from_poisson(sampler, steps=4000) -> set[str]:
    """Properties of the joint law that a sampler misses by more than 5.3 standard deviations (1.2e-7 each by
    chance).
    """
    member = np.zeros((steps, sampler.dataset_size))
    for step in range(steps):
        member[step, sampler.batch(step)] = 1
    size, q, n = member.sum(1), sampler.batch_size / sampler.dataset_size, sampler.dataset_size
    again = (member[::2] * member[1::2]).sum(1)
    marks = {
        "the variance of the size": ((size - n * q) ** 2, n * q * (1 - q)),
        "two examples in one batch": (size * (size - 1), n * (n - 1) * q * q),
        "one example in two batches running": (again, n * q * q),
    }
    return {
        name
        for name, (values, expected) in marks.items()
        if abs(values.mean() - expected) > 5.3 * values.std() / len(values) ** 0.5
    }


def test_p03_batches_have_the_joint_law_of_poisson_sampling():
    private_budget = budget()
    assert far_from_poisson(private_budget.sampler) == set()
    assert private_budget.ledger.event.sampling == private_budget.sampler.name == "poisson"
    stream = RunKey.published(0).stream("sampling")
    assert far_from_poisson(ShuffledEpochs(SIZE, BATCH_SIZE, stream)) >= {
        "the variance of the size",
        "one example in two batches running",
    }
    assert far_from_poisson(SAMPLERS["without_replacement"](SIZE, BATCH_SIZE, stream)) >= {
        "the variance of the size",
        "two examples in one batch",
    }


# That shuffled epochs cannot be asked for: test_sampling.py::test_shuffled_epochs_cannot_be_accounted_for


# P4, P5: the divisor --------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("count", [0, 1, BATCH_SIZE, 2 * BATCH_SIZE, 40])
def test_p04_a_saturated_batch_moves_by_its_size_over_the_expected_size(kind, count):
    """Dividing by the drawn size would give the clip for every size, and one example as much weight as many."""
    method = make(kind, stand_in_budget(0.0), loss=Loss(slope=1e6))
    moved = released_mean(method, np.full(count, 3))  # one example many times: all pull the same way
    assert np.linalg.norm(moved) == pytest.approx(count / BATCH_SIZE, rel=1e-4, abs=1e-6)


@every_method
@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_p04_infinite_losses_weigh_no_more(kind, infinite):
    moved = released_mean(make(kind, stand_in_budget(0.0), loss=Loss(slope=infinite)), np.arange(4))
    assert np.linalg.norm(moved) <= 4 / BATCH_SIZE * (1 + 1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": "without_replacement", "adjacency": "replace_one"}],
    ids=["poisson", "fixed size"],
)
def test_p05_there_is_no_short_last_batch(options):
    """50 examples in batches of 8: cut from an epoch, every seventh batch would hold 2, divided by 2 with
    noise for 8.
    """
    private_budget = budget(0.0, steps=200, **options)
    method = make(DPZero, stand_in_budget(0.0), loss=Loss(slope=1e12))
    sizes = []
    for batch in private_budget.batches():
        sizes.append(len(batch))
        assert abs(method.step(np.full(len(batch), 3))) == pytest.approx(CLIP * len(batch) / BATCH_SIZE)
    assert set(sizes) == {BATCH_SIZE} if options else len(set(sizes)) > 5


# P6: the scale of the noise -------------------------------------------------------------------------------


@every_method
def test_p06_the_noise_of_a_mean_is_scale_times_clip_over_the_expected_batch_size(kind):
    """Through each method's own divisions; a factor of 1.2 either way is detected."""
    method = make(kind, stand_in_budget(3.0), linear(40, 74, 1))
    if kind is DPSGD:
        mean = released_mean(method, NOBODY)
    else:
        mean = scalars(method, 3000) * (2 * SMOOTHING if kind is DPZO else 1) / CLIP
    noise = mean * BATCH_SIZE / 3.0
    law = stats.chi2(len(noise))
    assert len(noise) >= 3000
    assert law.ppf(4e-7) < (noise**2).sum() < law.isf(4e-7)
    for factor in (1 / 1.2, 1.2):
        assert not law.ppf(4e-7) < (factor**2 * noise**2).sum() < law.isf(4e-7)


@pytest.mark.parametrize(
    ("adjacency", "directions", "sensitivity"),
    [("add_remove", 1, 1), ("replace_one", 1, 2), ("add_remove", 4, 2), ("replace_one", 9, 6)],
)
def test_p06_the_adjacency_and_the_directions_make_the_sensitivity(adjacency, directions, sensitivity):
    """On full batches, noise proportional to the sensitivity gives the same epsilon."""
    base = Setting("gaussian", "full_batch", "add_remove", SIZE, SIZE, STEPS, 1e-5)
    setting = replace(base, adjacency=adjacency, directions=directions)
    assert setting.sensitivity() == sensitivity
    assert setting.epsilon(4.0 * sensitivity) == pytest.approx(base.epsilon(4.0), rel=1e-9)


# P7: an empty batch ---------------------------------------------------------------------------------------


@every_method
def test_p07_an_empty_batch_releases_noise_and_counts_first_and_midway(kind):
    """The model is not evaluated (the loss would fail), and the release is exactly that step's noise."""
    private_budget, twin = stand_in_budget(), stand_in_budget()
    method = make(kind, private_budget)
    for step, count in enumerate([0, 5, 0, 3, 0]):
        moved = released_mean(method, np.arange(count))
        if kind is DPSGD:
            sums = [torch.zeros_like(p) for p in method.parameters]
            twin.admit(0)
            twin.release_(sums, CLIP)
            expected = torch.cat([s.flatten() for s in sums]).numpy()
        else:
            expected = twin.release(torch.zeros(0), CLIP)
        if count == 0:
            assert moved * CLIP * BATCH_SIZE == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert len(private_budget.ledger) == method.steps_taken == step + 1


@every_method
def test_p07_a_run_in_which_a_third_of_the_batches_is_empty(kind):
    private_budget = budget(dataset_size=4, batch_size=1, steps=40)
    method, sizes = make(kind, private_budget), []
    for batch in private_budget.batches():
        method.step(batch)
        sizes.append(len(batch))
    assert sizes.count(0) > 0 and len(private_budget.ledger) == 40  # no empty one by chance: 3e-7
    assert torch.isfinite(weights(method.model)).all()


# P8: test_clipping.py::test_no_value_exceeds_the_bound, test_algorithm.py::test_one_example_moves_the_release_by_the_bound_at_most,
# baselines/test_contract.py::test_an_example_whose_loss_is_not_finite_counts_as_absent

# P9: baselines/test_contract.py::test_no_example_influences_the_loss_of_another,
# zeroth_order/test_two_point.py::test_a_loss_that_is_not_per_example_is_refused

# P10: zeroth_order/test_two_point.py::test_half_precision_is_refused,
# zeroth_order/test_two_point.py::test_the_difference_is_the_slope_along_the_direction


# P11: rounding --------------------------------------------------------------------------------------------


def off_the_grid(present: bool, arithmetic: str) -> tuple[int, int]:
    """Mironov's attack on one scalar. 1 + noise with a result below 1/4 is a multiple of 2^-53; 0 + noise has
    finer bits.

    -> (releases that are no such multiple, releases below 1/4), of a sum that is 1 (the bound) or empty.
    """
    private_budget = stand_in_budget(noise_arithmetic=arithmetic)
    values = torch.ones(int(present), dtype=torch.float64)
    small = [y for _ in range(4000) if abs(y := private_budget.release(values, 1.0)) < 0.25]
    return sum(not (y * 2**53).is_integer() for y in small), len(small)


def test_p11_the_low_order_bits_of_float_noise_reveal_membership():
    (never, of_present), (often, of_absent) = (off_the_grid(present, "float") for present in (True, False))
    assert never == 0 and of_present > 300
    assert often > of_absent / 2 > 300


def test_p11_the_low_order_bits_of_exact_noise_do_not():
    for present in (True, False):
        off, small = off_the_grid(present, "exact")
        assert off == 0 and small > 300


# P12: noise that replays for the sake of reproducibility --------------------------------------------------


@every_method
def test_p12_a_run_is_either_a_valid_release_or_replays(kind):
    for key, secret in ((lambda: RunKey.published(0), False), (RunKey.secret, True)):
        ends, valid_releases = [], []
        for _ in range(2):
            private_budget = budget(key=key(), arithmetic="float" if kind is DPSGD else None)
            private_budget.record_influence(0.0)  # as of a loss whose bits are each example's own
            valid_releases.append(private_budget.statement(CLIP, 2.0)["valid_release"])
            method = make(kind, private_budget)
            for batch in private_budget.batches():
                method.step(batch)
            ends.append(weights(method.model))
        valid = secret and kind is not DPSGD  # whose noise is in floats
        assert valid_releases == [valid, valid] and torch.equal(*ends) != secret


# In the record: run/test_run.py::test_what_was_spent_is_the_target_and_no_more
# In the report: report/test_statement.py::test_a_published_key_is_no_private_release


# P13: resuming --------------------------------------------------------------------------------------------

KILLED_AFTER = 4


def run_until_killed(folder: Path, pipe: int) -> None:
    """Both kinds of key, each with a ledger and no checkpoint, until SIGKILL."""
    for kind in ("published", "secret"):
        private_budget = budget(key=RunKey.for_run(kind, 0), ledger=folder / kind)
        method = make(DPZero, private_budget)
        for batch in itertools.islice(private_budget.batches(), KILLED_AFTER):
            os.write(pipe, f"{method.step(batch)}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def test_p13_a_killed_run_counts_what_it_released_and_repeats_no_noise_on_other_data(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            run_until_killed(tmp_path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        printed = [float(line) for line in pipe.read().split()]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = {"published": printed[:KILLED_AFTER], "secret": printed[KILLED_AFTER:]}
    for kind in ("published", "secret"):
        private_budget = budget(key=RunKey.for_run(kind, 0), ledger=tmp_path / kind)
        assert len(private_budget.ledger) == KILLED_AFTER
        method = make(DPZero, private_budget)
        again = [method.step(batch) for batch in private_budget.batches()]
        assert len(again) == (STEPS if kind == "published" else STEPS - KILLED_AFTER)
        assert len(private_budget.ledger) == STEPS  # what was released before the kill is spent
        repeated = set(again) & set(before[kind])
        assert len(repeated) == (KILLED_AFTER if kind == "published" else 0)  # the same release, or a new one


@every_method
def test_p13_a_checkpoint_holds_no_state_of_noise_or_sampling(kind):
    """Optimizer moments are functions of released sums and scalars."""
    allowed = {"steps_taken", "parameters", "optimizer", "second_moment", "param_groups", "budget"}
    state = make(kind, budget(key=RunKey.secret(), arithmetic="float")).state_dict()
    assert set(state) <= allowed
    assert set(state["budget"]) == {"event", "position", "releases"}


# That no noise is used twice under one secret key: test_life_cycle.py::test_no_noise_and_no_batch_is_used_for_a_second_sum


# P14: choosing settings on private data -------------------------------------------------------------------


def test_p14_choosing_the_best_of_ten_costs_more_than_one_run():
    """A random number of tries is accounted for; the statement calls any other choice not accounted."""
    setting = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
    once, best = setting.epsilon_rdp(4.05), Tries("geometric", 10).epsilon(setting, 4.05)
    assert 1.8 * once < best < 10 * once


# P15: what a private run logs -----------------------------------------------------------------------------


def test_p15_the_ledger_is_the_same_whatever_the_data_are(tmp_path):
    """The ledger reveals neither batch sizes nor losses: the same bytes for any batch."""
    texts = []
    for name, count, slope in (("a", 0, 1.0), ("b", 9, 1e6), ("c", 3, math.nan)):
        method = make(DPZero, stand_in_budget(ledger=tmp_path / name), loss=Loss(slope))
        for _ in range(3):
            method.step(np.arange(count))
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] == texts[2]


# The record, the curve, the checkpoint and the log: run/test_release.py::test_no_number_that_is_left_behind_is_a_private_one

# P16: run/test_run.py::test_a_secret_run_shows_no_function_of_private_examples,
# run/test_release.py::test_a_score_on_dev_is_refused_before_anything_runs


# P17: micro-batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 3, 8])
def test_p17_micro_batches_clip_each_example_and_share_one_draw_of_noise(part):
    whole, parts = budget(), budget()
    ends = []
    for private_budget, loss in ((whole, Loss(5.0)), (parts, Loss(5.0, part))):
        method = make(DPSGD, private_budget, loss=loss, learning_rate=1.0)
        for batch in private_budget.batches():
            method.step(batch)
        ends.append(weights(method.model))
        assert len(private_budget.ledger) == STEPS
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-5)


# P18: rate and steps that are read off a loader -----------------------------------------------------------


@pytest.mark.parametrize(("size", "batch", "steps"), [(50, 8, 93), (1000, 64, 117), (7, 2, 99)])
def test_p18_rate_and_steps_are_those_that_were_asked_for(size, batch, steps):
    """A loader of ceil(50 / 8) batches would make a rate of 1 / 7 and a divisor of 7."""
    private_budget = budget(dataset_size=size, batch_size=batch, steps=steps)
    assert private_budget.setting.rate == batch / size and private_budget.batch_size == batch
    sizes = [len(drawn) for drawn in private_budget.batches()]
    assert len(sizes) == steps
    deviation = (sum(sizes) - steps * batch) / math.sqrt(steps * batch * (1 - batch / size))
    assert abs(deviation) < 5.2  # 2e-7 by chance


# P19, P20, P21: whose norm is clipped ---------------------------------------------------------------------


def test_p19_a_frozen_parameter_changes_nothing():
    """It changes neither the clipped norm nor the noise of the others."""
    ends = []
    for frozen in (False, True):
        model = linear()
        if frozen:
            rotation = nn.Linear(5, 5, bias=False).requires_grad_(False)
            nn.init.eye_(rotation.weight)
            model = nn.Sequential(rotation, model)
        method = make(DPSGD, stand_in_budget(), model, Loss(100.0))
        method.step(np.arange(6))
        ends.append(torch.cat([p.detach().flatten() for p in method.parameters]))
    assert torch.allclose(*ends, atol=1e-6)


class Tied(nn.Module):
    """Embeds a text and scores it with the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(0))
        self.head.weight = self.embedding.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        words = (inputs.abs() * 10).long() % 7
        return self.head(self.embedding(words).tanh().sum(1)).log_softmax(1)


@pytest.mark.parametrize("clip", [0.5, 1e6], ids=["clipped", "loose"])
def test_p20_the_gradient_of_a_tied_embedding_is_that_of_both_uses(clip):
    model, loss = Tied(), Loss()
    start, expected = weights(model), torch.zeros(28)
    for i in range(9):
        (gradient,) = torch.autograd.grad(loss(model, np.array([i])).sum(), [model.head.weight])
        expected += gradient.flatten() * min(1, clip / gradient.norm().item())
    make(DPSGD, stand_in_budget(0.0), model, loss, clip=clip, learning_rate=1.0).step(np.arange(9))
    assert torch.allclose((start - weights(model)) * BATCH_SIZE, expected, rtol=1e-4, atol=1e-5)


# For zeroth order: zeroth_order/test_two_point.py::test_a_tied_parameter_is_perturbed_once


class Positions(nn.Module):
    """One row of positions for the whole batch, as in GPT-2 and BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(5, 1), nn.Linear(5, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs + self.positions(torch.arange(5)[None])[..., 0])


def test_p21_a_gradient_that_is_not_per_example_is_refused():
    private_budget = stand_in_budget()
    with pytest.raises(RuntimeError, match="has 1 rows for 6 examples"):
        make(DPSGD, private_budget, Positions()).step(np.arange(6))
    assert len(private_budget.ledger) == 0


# Flattened batches: baselines/test_per_sample_gradients.py::test_a_model_that_would_be_clipped_per_token_is_refused


# P22: layers that mix examples ----------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("statistics", [True, False])
def test_p22_a_layer_that_normalises_over_the_batch_is_refused(kind, statistics):
    layer = nn.BatchNorm1d(3, track_running_stats=statistics).train(
        statistics
    )  # without statistics, in evaluation, too
    model = nn.Sequential(nn.Linear(5, 3), layer, nn.Linear(3, 1))
    with pytest.raises(ValueError, match="normalises over the batch"):
        make(kind, budget(), model)


@pytest.mark.parametrize("kind", [DPZero, DPZO])
def test_p22_batch_normalisation_with_fixed_statistics_is_accepted(kind):
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    make(kind, stand_in_budget(), model.eval()).step(np.arange(6))
    model[1].track_running_stats = False  # then evaluation mode does not help
    with pytest.raises(ValueError, match="layer 1 normalises over the batch"):
        make(kind, budget(), model)


# The models of the house: baselines/test_contract.py::test_no_example_influences_the_loss_of_another


# P23: a bound that follows the data -----------------------------------------------------------------------


@every_method
def test_p23_the_bound_is_a_constant(kind):
    private_budget = Watched(SETTING, 1.0, RunKey.published(0))
    method = make(kind, private_budget)
    for step, batch in enumerate(private_budget.batches()):
        method.loss.slope = 10.0 ** (3 - step)  # losses fall by ten orders
        method.step(batch)
    assert [clip for _, clip, _ in private_budget.seen] == [CLIP] * STEPS


# P24: delta -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "size"), [(1 / 50, 50), (1 / 49, 49), (0.5, 50)])
def test_p24_a_delta_of_one_over_n_gives_a_warning(delta, size):
    with pytest.warns(UserWarning, match=rf"delta is {delta:g} for {size} examples: .* choose a far smaller"):
        budget(delta=delta, dataset_size=size)


@pytest.mark.parametrize("delta", [1e-5, 0.99 / SIZE])
def test_p24_a_smaller_delta_passes_and_is_in_the_statement(delta):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statement = budget(delta=delta).statement(CLIP, 2.0)
    assert (statement["delta"], statement["dataset_size"]) == (delta, SIZE)


# In the report: report/test_statement.py::test_a_delta_too_large_for_the_data_is_flagged

# P25: n, the expected batch size and label counts are public by declaration: inputs of a Setting, printed in the statement,
# test_budget.py::test_the_statement_says_what_ran; no constant is computed from the examples, P18 above

# P26: cannot happen here: a Setting has no field for a corpus that its examples were drawn from, and a run's rate is over the
# examples that it trains on, run/test_run.py::test_what_was_spent_is_the_target_and_no_more

# P27: test_budget.py::test_epsilon_is_that_of_the_steps_that_ran,
# test_budget.py::test_more_steps_than_planned_cost_more_than_planned,
# run/test_run.py::test_running_out_of_memory_half_way_still_says_what_was_spent


# P28: DP-Adam ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *({"optimizer": optimizer} for optimizer in ("sgd", "adam", "adamw")),
        *({"clip_rule": rule, "clipping": "book_keeping"} for rule in ("flat", "automatic", "per_layer")),
        {"clip_rule": "per_layer"},
    ],
    ids=str,
)
def test_p28_one_clip_and_one_noise_scale_for_all_layers_and_optimizers(settings):
    """With the whole clip for each layer, one example would have a norm of sqrt(3) times the clip."""
    private_budget = WatchedStandInBudget(SETTING, 2.0)
    method = make(DPSGD, private_budget, linear(5, 40, 40, 1), Loss(1e6), **settings)
    method.step(np.array([3]))
    (clipped, bound, noisy) = private_budget.seen[0]
    assert bound == CLIP and clipped.norm().item() == pytest.approx(CLIP, rel=1e-5)
    squares = (((noisy - clipped) / (2.0 * CLIP)) ** 2).sum().item()
    law = stats.chi2(len(clipped))
    assert law.ppf(4e-7) < squares < law.isf(4e-7)


# The moments: baselines/test_dp_sgd.py::test_adam_takes_its_moments_from_the_noisy_sums_alone


# P29: gradient accumulation -------------------------------------------------------------------------------


@every_method
def test_p29_a_step_of_many_micro_batches_is_one_release(kind):
    """An accountant that counts micro-batches says too much, one that counts optimizer steps of several batches too little."""
    private_budget = budget()
    method = make(kind, private_budget, loss=Loss(part=2))
    for taken, batch in enumerate(private_budget.batches(), 1):
        method.step(batch)
        assert len(private_budget.ledger) == taken
    assert private_budget.epsilon_spent() == SETTING.epsilon(1.0)


@every_method
def test_p29_a_micro_batch_in_the_place_of_the_batch_is_refused(kind):
    private_budget = budget(noise_scale=0.0)
    method = make(kind, private_budget)
    batch = next(private_budget.batches())
    before, part = weights(method.model), batch[: len(batch) // 2]
    assert 0 < len(part) < len(batch)
    with pytest.raises(ValueError, match="give it every batch of the budget, complete and in order"):
        method.step(part)
    assert len(private_budget.ledger) == 0 and torch.equal(weights(method.model), before)


# P30: a clip that is computed and not applied, or whose norm misses a parameter or a use of one, P4, P20 and P28 here,
# baselines/test_dp_aggzo.py::test_a_step_is_the_papers,
# baselines/test_contract.py::test_one_example_moves_what_is_noised_by_the_bound_at_most,
# baselines/test_per_sample_gradients.py::test_an_embedding_tied_to_the_output_layer_is_clipped_as_a_whole,
# baselines/test_per_sample_gradients.py::test_an_embedding_read_without_its_layer_is_refused


# P31: what a noise scale is a scale of --------------------------------------------------------------------


def test_p31_the_calibrated_scale_is_that_of_the_sum_before_it_is_divided(capsys):
    """By the verb, for a mean whose noise is that scale times the clip over the batch size, with which the claim is spent."""
    question = {"delta": 1e-5, "dataset-size": SIZE, "batch-size": BATCH_SIZE, "steps": STEPS, "epsilon": 3}
    assert command_line.main(["calibrate", *(f"--{key}={value}" for key, value in question.items())]) == 0
    answer = json.loads(capsys.readouterr().out)
    scale = answer["noise_scale"]
    assert SETTING.epsilon(scale) == pytest.approx(3, rel=1e-3)
    noise = scalars(make(DPZero, stand_in_budget(scale)), 3000) * BATCH_SIZE / (scale * CLIP)
    law = stats.chi2(len(noise))
    assert law.ppf(4e-7) < (noise**2).sum() < law.isf(4e-7)
    words = f"noise_scale x clip, before division by the expected batch size of {BATCH_SIZE}"
    assert answer["noise_is"] == f"standard deviation on the sum = {words}"


# P32: epochs of Poisson batches ---------------------------------------------------------------------------


def test_p32_an_epochs_worth_of_poisson_batches_leaves_out_about_1_in_e(capsys):
    """Counted on the loader's own batches; 5.3 standard deviations of a share, 1.2e-7 by chance."""
    size, batch_size = 4000, 40
    private_budget = budget(dataset_size=size, batch_size=batch_size, steps=size // batch_size)
    seen = {row for batch in private_budget.loader(list(range(size))) for row in batch.tolist()}
    share = private_budget.setting.share_seen(size // batch_size)
    assert abs(len(seen) / size - share) < 5.3 * math.sqrt(share * (1 - share) / size)
    assert share == pytest.approx(1 - (1 - 1 / 100) ** 100) and abs(share - (1 - 1 / math.e)) < 3e-3
    question = {"delta": 1e-5, "dataset-size": size, "batch-size": batch_size, "steps": 300, "epsilon": 3}
    assert command_line.main(["calibrate", *(f"--{key}={value}" for key, value in question.items())]) == 0
    shares = json.loads(capsys.readouterr().out)["share_of_examples_seen"]
    assert shares == {"in_all_steps": pytest.approx(1 - 0.99**300), "in_an_epoch": pytest.approx(share)}


def test_p32_a_pass_of_random_allocation_has_every_example():
    private_budget = budget(sampling="random_allocation", steps=7)  # 50 examples in batches of 8
    share = private_budget.setting.share_seen
    seen = [set(batch.tolist()) for batch in private_budget.batches()]
    assert len(set().union(*seen)) == SIZE and share(7) == share(9) == 1 and share(1) == pytest.approx(1 / 7)


# The list itself ------------------------------------------------------------------------------------------


def test_every_pitfall_has_a_test_and_every_named_test_exists():
    text, tests = Path(__file__).read_text(), Path(__file__).parents[1]
    named = re.findall(r"^# P(\d+)", text, re.MULTILINE) + re.findall(
        r"^def test_p(\d+)_", text, re.MULTILINE
    )
    assert {int(number) for number in named} == set(range(1, 33))
    references = re.findall(r"([\w/]+\.py)::(test_\w+)", text)
    assert len(references) > 20
    for file, name in references:
        assert any(f"def {name}(" in planted.source(path) for path in tests.rglob(file)), f"{file}::{name}"
