"""With the base model, a transcript is the fine-tuned model: to the bit, or it is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from baselines.dp_aggzo import DPAggZO
from baselines.dp_zoso import DPZOSO
from baselines.mezo import MeZO
from dpzero import DPZero
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.zeroth_order import Gaussian, transcript
from dpzero.zeroth_order.directions import LAWS
from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.perturbation import PERTURB
from dpzero.zeroth_order.transcript import Transcript, digest, read, replay
from tests.all_pairs import pairwise

STEPS = 7
EXAMPLES = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """A table that is tied to the head, a linear layer, a single number, a frozen vector."""

    def __init__(self, dtype) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.ones(6), requires_grad=False)
        self.to(dtype)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale * torch.tanh(self.inner(self.table(words).mean(1)) + self.shift))


def base(dtype=torch.float32) -> Model:
    torch.manual_seed(0)
    return Model(dtype)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(batch[:, :-1]), batch[:, -1], reduction="none")


def make(name: str, model: nn.Module, **engine):
    """Noise is that of a published key: a run that is made again releases the same."""
    settings = {"learning_rate": 0.01, "seed": 3} | engine
    if name == "mezo":
        return MeZO(model, loss, 6, **settings)
    directions = 3 if name == "dp_aggzo" else 1
    setting = Setting("gaussian", "poisson", "add_remove", 20, 6, STEPS, 1e-3)
    budget = StandInBudget(setting, 0.5, RunKey.published(0))
    if name == "dp_aggzo":
        return DPAggZO(model, loss, budget, clip=2.0, directions=directions, **settings)
    kind = {"dpzero": DPZero, "dp_zoso": DPZOSO}[name]
    return kind(model, loss, budget, clip=2.0, **settings)


METHODS = ["dpzero", "mezo", "dp_aggzo", "dp_zoso"]
BATCHES = [EXAMPLES[: (6, 0, 3)[step % 3]] for step in range(STEPS)]  # some are empty


def train(me, steps=STEPS) -> None:
    for step in range(me.steps_taken, steps):
        me.step(BATCHES[step])


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainable(model.parameters())]


def same(these, those) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@pytest.fixture
def written(tmp_path):
    """(path, the weights) of a run of DPZero."""
    model, path = base(), tmp_path / "run.transcript"
    me = make("dpzero", model)
    me.write_transcript(path)
    train(me)
    return path, weights(model)


def rows_of(path) -> tuple[int, bytes]:
    """Where the rows begin, and the whole file."""
    data = path.read_bytes()
    return data.index(b"\n") + 1, data


# The file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "row"), [("dpzero", 20), ("mezo", 20), ("dp_zoso", 20), ("dp_aggzo", 36)])
def test_a_step_is_twenty_bytes_and_eight_for_each_further_direction(name, row, tmp_path):
    me, path = make(name, base()), tmp_path / "deep" / "run.transcript"
    me.write_transcript(path)
    used, released = [], []
    for batch in BATCHES:
        used.append(me.learning_rates())
        released.append(np.atleast_1d(me.step(batch)))
    begin, data = rows_of(path)
    assert len(data) - begin == STEPS * row
    header, scalars, rates = read(path)
    assert scalars.dtype == np.float64 and np.array_equal(scalars, released)
    assert header["method"] == me.title and header["law"]["version"] == me.law.law
    assert np.array_equal(rates, used) and (len(set(rates[:, 0])) > 1) == (name == "dp_zoso")


def test_scalars_come_back_as_they_went_in(tmp_path):
    values = [[0.1, -0.0], [float("inf"), 5e-324], [1e300, float("nan")], [-1 / 3, 2.0**60]]
    header = {"format": transcript.FORMAT, "directions": 2, "groups": [[0]]}
    file = Transcript(tmp_path / "t", header)
    for row in values:
        file.append(row, [0.1])
    assert len(read(tmp_path / "t")[1]) == 4  # before it is closed
    file.close()
    assert read(tmp_path / "t")[1].tobytes() == np.array(values).tobytes()
    assert len(Transcript(tmp_path / "t", header)) == 4


def test_a_flipped_bit_is_refused_and_the_step_is_named(written):
    path, _ = written
    begin, data = rows_of(path)
    for position in range(begin, len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=f"is damaged .*in the row of step {(position - begin) // 20}:"):
            read(path)


def test_rows_that_were_exchanged_dropped_or_repeated_are_refused(written):
    path, _ = written
    begin, data = rows_of(path)
    rows = [data[i : i + 20] for i in range(begin, len(data), 20)]
    for altered, step in (
        ([rows[1], rows[0], *rows[2:]], 0),
        ([*rows[:2], *rows[3:]], 2),
        ([*rows[:3], rows[2], *rows[3:]], 3),
    ):
        path.write_bytes(data[:begin] + b"".join(altered))
        with pytest.raises(ValueError, match=f"row of step {step}:"):
            read(path)


def test_a_header_that_was_altered_is_refused(written):
    """Another seed, rate or smoothing would make another model without a word."""
    path, _ = written
    _, data = rows_of(path)
    for old, new in (
        (b'"seed": 3', b'"seed": 4'),
        (b"0.01]", b"0.02]"),
        (b'"smoothing": 0.001', b'"smoothing": 0.002'),
        (b'"delta": 0.001', b'"delta": 0.01'),
    ):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match="is damaged"):
            replay(weights(base()), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no transcript"),
        (b"no line end", "is no transcript"),
        (b"\xff\xfe\n", "is no transcript"),
        (b"[1]\n", "is no transcript"),
        (b'{"directions": 1}\n', "is no transcript"),
        (
            b'{"format": "dpzero transcript 2", "directions": 1}\n',
            "has format 'dpzero transcript 2': this version reads 'dpzero transcript 3', so replay it with",
        ),
    ],
)
def test_what_is_no_transcript_is_refused(content, message, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t")


# Replay --------------------------------------------------------------------------------------------------------------


@pairwise("name, law, perturb", METHODS, LAWS, PERTURB)
def test_a_replay_has_the_trained_weights_to_the_bit(name, law, perturb, tmp_path, monkeypatch):
    """Whatever the number of steps that a pass over the weights applies, and from the middle on."""
    model, path, middle = base(), tmp_path / "t", None
    me = make(name, model, direction_law=law, direction_rank=2, perturb=perturb)
    me.write_transcript(path)
    train(me, 4)
    middle = weights(model)
    train(me)
    end = weights(model)
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(end, weights(base()), strict=True))
    for steps_a_pass in (1, 3, 64):
        monkeypatch.setattr(transcript, "STEPS_A_PASS", steps_a_pass)
        for start, x in (
            (0, weights(base())),
            (4, [p.clone() for p in middle]),
            (STEPS, [p.clone() for p in end]),
        ):
            assert replay(x, path, start) == STEPS
            assert same(x, end)


@pytest.mark.parametrize("name", ["dpzero", "dp_aggzo"])
def test_adams_second_moment_of_the_scalars_is_computed_from_the_transcript(name, tmp_path):
    """Step by step the formula; whole, from a checkpoint, from the file of a killed run, and in a replay, the same bits."""
    path, model, x = tmp_path / "t", base(torch.float64), weights(base(torch.float64))
    me = make(name, model, second_moment=0.9)
    me.write_transcript(path)
    mean = 0.0
    for step in range(STEPS):
        if step == 3:
            state = copy.deepcopy(me.state_dict())
        before, scalars = weights(model), np.atleast_1d(me.step(BATCHES[step]))
        mean = 0.9 * mean + 0.1 * (scalars**2).mean()
        for k, g in enumerate(scalars / np.sqrt(mean / (1 - 0.9 ** (step + 1)))):
            me.law.add_(before, step, -0.01 * g, k)
        # after a cycle of perturbations in double precision
        assert all(
            torch.allclose(p, b, rtol=0, atol=1e-12) for p, b in zip(weights(model), before, strict=True)
        )
    assert replay(x, path) == STEPS and same(x, weights(model))

    other = make(name, base(torch.float64), second_moment=0.9)
    other.load_state_dict(state)
    train(other)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(weights(other.model), x, strict=True))

    header, _ = rows_of(path)
    (tmp_path / "killed").write_bytes(path.read_bytes()[: header + 4 * (8 * me.directions + 12)])
    late = make(name, base(torch.float64), second_moment=0.9)
    late.write_transcript(tmp_path / "killed")
    assert late.steps_taken == 4
    train(late)
    assert same(weights(late.model), weights(model))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="it must be at least 0 and below 1"):
        make("mezo", base(), second_moment=decay)


@pytest.mark.parametrize("name", METHODS)
def test_a_replay_in_double_precision_has_the_trained_weights_to_the_bit(name, tmp_path):
    model, path, x = base(torch.float64), tmp_path / "t", weights(base(torch.float64))
    me = make(name, model)
    me.write_transcript(path)
    train(me)
    replay(x, path)
    assert x[0].dtype == torch.float64 and same(x, weights(model))


def test_a_replay_leaves_out_a_torn_row(written):
    path, _ = written
    path.write_bytes(path.read_bytes()[:-1])
    x, me = weights(base()), make("dpzero", base())
    assert replay(x, path) == STEPS - 1
    train(me, STEPS - 1)
    assert same(x, me.parameters)


@pytest.mark.parametrize("number", range(5))
def test_another_base_model_is_refused_and_not_touched(written, number):
    """A number of one tensor; the type; the tensors."""
    path, _ = written
    x = weights(base())
    x[number].view(-1)[-1] += 1e-6
    for other in (x, weights(base(torch.float64)), x[:-1], [x[0].view(1, -1), *x[1:]]):
        before = [p.clone() for p in other]
        with pytest.raises(
            ValueError, match=r"are not those that the run of .* started from: give its base model"
        ):
            replay(other, path)
        assert same(other, before)


def test_the_digest_is_of_types_shapes_and_numbers():
    x = torch.arange(6.0)
    different = [
        [x],
        [x.view(2, 3)],
        [x.view(3, 2)],
        [x.double()],
        [x[:3], x[3:]],
        [x + 1],
        [x[:5]],
        [-x],
        [x[0]],
        [x[:1]],
    ]
    assert len({digest(tensors) for tensors in different}) == len(different)
    assert digest([x.view(2, 3).t().contiguous().t()]) == digest(
        [x.view(2, 3)]
    )  # not of how they lie in memory


def test_a_law_of_another_version_is_refused(written, monkeypatch):
    path, _ = written
    monkeypatch.setattr(Gaussian, "law", "gaussian-of-tomorrow")
    with pytest.raises(
        ValueError, match=r"was written with directions gaussian-.*, here is gaussian-of-tomorrow"
    ):
        replay(weights(base()), path)


# Going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [0, 1, 7, 19])
@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_run_resumes_from_complete_rows_to_the_same_file_and_weights(written, kept, torn):
    path, end = written
    begin, data = rows_of(path)
    path.write_bytes(data[: begin + 20 * kept + torn])
    model = base()
    me = make("dpzero", model)
    me.write_transcript(path)
    assert me.steps_taken == kept
    train(me)
    assert same(weights(model), end) and path.read_bytes() == data


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("perturb", PERTURB)
def test_a_run_killed_between_row_and_move_resumes_to_the_same_weights(name, perturb, tmp_path):
    """The row is in the file before the weights move, and its step is not asked of the model again."""

    class Killed(BaseException):
        pass

    def killed(*_):
        assert len(read(path)[1]) == 4
        raise Killed

    uncut, path = base(), tmp_path / "t"
    whole = make(name, uncut, perturb=perturb)
    whole.write_transcript(tmp_path / "whole")
    train(whole)
    me = make(name, base(), perturb=perturb)
    me.write_transcript(path)
    train(me, 3)
    me.perturbation.plan_update = killed
    with pytest.raises(Killed):
        train(me)
    model, asked = base(), []
    again = make(name, model, perturb=perturb)
    again.loss = lambda *arguments: asked.append(again.steps_taken) or loss(*arguments)
    again.write_transcript(path)
    assert again.steps_taken == 4 and not asked
    train(again)
    assert same(weights(model), weights(uncut)) and min(asked) > 3
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_run_resumed_from_its_state_takes_only_the_remaining_steps(written):
    path, end = written
    me = make("dpzero", base())
    train(me, 4)
    state = me.state_dict()
    model = base()
    again = make("dpzero", model)
    again.load_state_dict(state)
    again.write_transcript(path)
    assert again.steps_taken == STEPS and same(weights(model), end)


def test_a_transcript_that_is_shorter_than_the_state_is_refused(written):
    path, _ = written
    begin, data = rows_of(path)
    path.write_bytes(data[: begin + 20 * 2 + 5])
    me = make("dpzero", base())
    train(me, 4)
    with pytest.raises(ValueError, match="has 2 of the 4 steps taken: start from the base model"):
        me.write_transcript(path)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"learning_rate": 0.02},
        {"smoothing": 1e-2},
        {"direction_law": "rademacher"},
        {"direction_law": "low_rank"},
        {"perturb": "on_read"},
    ],
    ids=str,
)
def test_the_transcript_of_another_run_is_refused_and_kept(written, other):
    path, _ = written
    data = path.read_bytes()
    with pytest.raises(ValueError, match="is of another run: remove it, or give its settings and base model"):
        make("dpzero", base(), **other).write_transcript(path)
    with pytest.raises(ValueError, match="is of another run"):
        make("mezo", base()).write_transcript(path)
    moved = base()
    with torch.no_grad():
        moved.table.weight += 1
    with pytest.raises(ValueError, match="is of another run"):
        make("dpzero", moved).write_transcript(path)
    assert path.read_bytes() == data


def test_the_model_that_is_shipped_is_smaller_than_a_kilobyte(written):
    path, _ = written
    begin, data = rows_of(path)
    assert json.loads(data[:begin])["base_sha256"] == digest(weights(base())) and len(data) < 1000
    assert copy.deepcopy(read(path)[0])["directions"] == 1
