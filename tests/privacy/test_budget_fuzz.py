"""Random uses of a budget: the reported epsilon is never below that of an independent count of the releases.

The test counts the numbers that get noise, not the ledger. No two of them may share batch or noise. The noise
is Laplace at delta 0, whose epsilon is a closed form, so thousands of lives fit into a minute. DPZERO_FUZZ
sets their number.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey, Setting
from dpzero.privacy.mechanisms import Noise

LIVES = int(os.environ.get("DPZERO_FUZZ", "60"))
SIZE, STEPS, SCALE = 12, 6, 2.0
SETTING = Setting("laplace", "poisson", "add_remove", SIZE, 3, STEPS, 0.0)
ONE_RELEASE = math.log1p(3 / SIZE * math.expm1(1 / SCALE))  # of epsilon, at most
X = torch.linspace(-1, 1, SIZE)


class Life:
    """One run with saves, loads, forks, failures and restarts, and the releases of all budgets that continue
    it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, itertools.count()
        self.failing = 0
        self.events: list[
            tuple[int, int]
        ] = []  # noise object and number of the batch, of every sum that was noised
        self.rows: tuple[int, ...] = ()  # that the model was asked about last
        self.begin(self.new_budget(self.file()))
        self.me.write_transcript(self.transcript)
        self.history: list[
            tuple
        ] = []  # releases of the run at hand, and of all that share one of them with it
        self.saved: tuple[dict, list[tuple]] | None = None

    def file(self) -> Path:
        return self.folder / str(next(self.files))

    def new_budget(self, ledger: Path | None = None) -> Budget:
        return Budget(SETTING, SCALE, RunKey.secret(), ledger, noise_arithmetic="float")

    def begin(self, budget: Budget) -> None:
        self.budget, self.model, self.transcript = budget, nn.Linear(1, 1, bias=False), self.file()
        nn.init.ones_(self.model.weight)
        self.me = self.optimizer(budget)

    def optimizer(self, budget: Budget) -> DPZero:
        return DPZero(self.model, self.loss, budget, learning_rate=0.1, clip=0.5)

    def loss(self, model: nn.Module, rows) -> torch.Tensor:
        if isinstance(rows, list):  # of a DataLoader: fields
            rows = rows[1]
        if self.failing:
            self.failing -= 1
            if not self.failing:
                raise RuntimeError("out of memory")
        self.rows = tuple(map(int, rows))
        return model(X[torch.as_tensor(rows)][:, None])[:, 0] ** 2

    def step(self, batch, optimizer: DPZero | None = None) -> None:
        """A step that the budget accepts is one release, of the batch that the model saw."""
        before = len(self.events)
        self.rows = ()
        try:
            (optimizer or self.me).step(batch)
        except (ValueError, RuntimeError):
            assert len(self.events) == before, "a refused step released"
            return
        assert len(self.events) == before + 1
        self.history.append((*self.events[-1], self.rows))

    # -- what a user does -----------------------------------------------------------------------------------

    def loop(self, n: int) -> None:
        for batch in itertools.islice(self.budget.batches(), n):
            self.step(batch)

    def epochs(self, n: int) -> None:
        for _ in range(n % 3 + 1):
            self.loop(99)

    def loader(self, n: int) -> None:
        for batch in itertools.islice(self.budget.loader(TensorDataset(X, torch.arange(SIZE))), n):
            self.step(batch)

    def skip(self, n: int) -> None:
        for number, batch in enumerate(self.budget.batches()):
            if number != n:
                self.step(batch)

    def wrong(self, n: int) -> None:
        batch = next(self.budget.batches(), np.arange(3))
        rng = np.random.default_rng(n)
        others = [
            range(SIZE),
            batch[1:],
            np.append(batch, 0),
            np.repeat(batch[:1], len(batch)),
            [],
            rng.permutation(SIZE)[: len(batch)],
        ]
        self.step(others[n % len(others)])
        self.step(batch)
        self.step(batch)

    def ahead(self, n: int) -> None:
        batches = list(itertools.islice(self.budget.batches(), n))
        for batch in batches[:: -1 if n % 2 else 1]:
            self.step(batch)

    def fail(self, n: int) -> None:
        self.failing = n % 4 + 1
        self.loop(2)
        self.failing = 0

    def save(self, n: int) -> None:
        self.saved = pickle.loads(pickle.dumps(self.me.state_dict())), self.history

    def go_back(self, n: int) -> None:
        if self.saved:
            try:
                self.me.load_state_dict(self.saved[0])
            except ValueError:
                return

    def load_into_a_new_budget(self, n: int) -> None:
        if self.saved:
            self.begin(self.new_budget(self.file() if n % 2 else None))
            self.me.load_state_dict(self.saved[0])
            # before the first release there is nothing that two runs could share
            self.history = self.saved[1] if self.saved[0]["budget"]["releases"] else []

    def resume_ledger(self, n: int) -> None:
        path = self.budget.ledger.path
        if path:
            self.budget.close()
            self.begin(Budget.resume(path))
            self.budget._noise.arithmetic = "float"

    def resume_transcript(self, n: int) -> None:
        """Resume the transcript of a killed process, which holds all its releases."""
        if self.me.transcript is None:
            return
        path, taken = self.transcript, self.me.steps_taken
        self.me.transcript.close()
        self.begin(self.new_budget())
        self.me.write_transcript(path)
        self.transcript, self.history = path, self.history if taken else []

    def fork(self, n: int) -> None:
        batch = next(self.budget.batches(), None)
        child = os.fork()
        if not child:
            try:
                self.me.step(batch if batch is not None else [])
            except BaseException:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a fork released"
        if batch is not None:
            self.step(batch)

    def copy(self, n: int) -> None:
        with pytest.raises(TypeError):
            copy.deepcopy(self.me)

    def second(self, n: int) -> None:
        """Another optimizer of the same budget."""
        other = self.optimizer(self.budget)
        for batch in itertools.islice(self.budget.batches(), n):
            self.step(batch, other)


DEEDS = [name for name in vars(Life) if not name.startswith("_")]
DEEDS = [name for name in DEEDS if name not in ("file", "new_budget", "begin", "optimizer", "loss", "step")]


LIFE = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 7)), min_size=1, max_size=12)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@settings(relaxed, max_examples=LIVES)
@given(LIFE)
def test_epsilon_is_never_below_what_any_sequence_of_operations_spent(deeds):
    check(deeds)


@pytest.mark.slow
@settings(relaxed, max_examples=10 * LIVES)
@given(LIFE)
def test_epsilon_is_never_below_what_many_longer_sequences_spent(deeds):
    check(deeds)


def check(deeds: list[tuple[str, int]]) -> None:
    """Run these operations; epsilon must never be below what was spent."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        life = None
        sums = Noise.sums

        def watched(noise, draw, values, *rest, **options):
            life.events.append((id(noise._stream), draw))
            KEPT.append(noise._stream)  # so that no other gets its id
            return sums(noise, draw, values, *rest, **options)

        patch.setattr(Noise, "sums", watched)
        life = Life(Path(folder))
        for deed, n in deeds:
            getattr(life, deed)(n)
            epsilon, count = life.budget.epsilon_spent(), len(life.history)
            assert epsilon >= count * ONE_RELEASE - 1e-9, (deed, epsilon, count)
            assert epsilon <= STEPS * ONE_RELEASE + 1e-9 and len(life.budget.ledger) <= STEPS
            released = [(stream, draw) for stream, draw, _ in life.history]
            assert len(set(released)) == len(released), "noise was used twice"
        assert len(set(life.events)) == len(life.events), "noise was used twice"
        life.budget.close()
        KEPT.clear()


KEPT: list = []
MEMORY = next(
    (place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None
)  # files are synced at each release
