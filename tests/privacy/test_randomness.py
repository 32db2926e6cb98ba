"""The streams of sampling and noise are separate, addressable and keyed.

Chance of failure below 1e-6 each.
"""

from __future__ import annotations

import ast
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import dpzero
from dpzero.privacy import RunKey, Stream

DRAWS = 100_000
SIX_SIGMA = 6 / DRAWS**0.5  # a correlation of independent draws is larger with probability 2e-9
HOUSE = Path(dpzero.__file__).parent


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize(
    "other",
    [
        RunKey.published(0).stream("sampling").normals(DRAWS, 0),
        RunKey.published(1).stream("noise").normals(DRAWS, 0),
        RunKey.published(0).stream("noise").normals(DRAWS, 1),
        RunKey.published(0).stream("noise").normals(DRAWS, 0, 0),
        RunKey.published(0).stream("noise").normals(DRAWS + 1, 0)[1:],
    ],
    ids=["another purpose", "another key", "another step", "a longer counter", "the neighbouring draw"],
)
def test_streams_that_differ_are_unrelated(other):
    noise = RunKey.published(0).stream("noise").normals(DRAWS, 0)
    assert abs(correlation(noise, other)) < SIX_SIGMA


@pytest.mark.parametrize(
    ("draw", "law"), [("uniforms", stats.uniform), ("normals", stats.norm), ("laplaces", stats.laplace)]
)
def test_uniform_normal_and_laplace_draws_have_their_laws(draw, law):
    values = getattr(RunKey.published(0).stream("noise"), draw)(DRAWS, 3)
    assert stats.kstest(values, law.cdf).pvalue > 5e-7


def test_normals_are_normal_in_the_tails_too():
    values = np.abs(RunKey.published(1).stream("noise").normals(DRAWS, 0))
    for bound in (2, 3, 4):
        assert stats.binomtest(int((values > bound).sum()), DRAWS, 2 * stats.norm.sf(bound)).pvalue > 3e-7


@given(st.permutations(range(8)))
def test_a_step_can_be_recomputed_without_the_steps_before_it(order):
    read_in_turn = RunKey.published(0).stream("noise")
    expected = [read_in_turn.normals(3, step) for step in range(8)]
    stream = RunKey.published(0).stream("noise")
    for step in order:
        assert np.array_equal(stream.normals(3, step), expected[step])


def test_a_published_key_replays_known_values():
    stream = RunKey.published(0).stream("noise")
    assert stream.normals(3, 0, 0, 0) == pytest.approx(
        [-0.5038361606761725, 0.9869925758741188, 1.7422318526029177], rel=1e-14
    )
    assert stream.laplaces(2, 7, 0, 0) == pytest.approx(
        [0.0028332981845874583, 0.7101227556718691], rel=1e-14
    )
    assert RunKey.published(0).stream("sampling").words(2, 5).tolist() == [
        18221724161861885754,
        9074106913803271134,
    ]
    assert RunKey.for_run("published", 3) == RunKey.published(3) != RunKey.published(4)
    assert not RunKey.published(0).valid_release


def test_a_secret_key_never_replays():
    keys = [RunKey.for_run("secret", seed=0) for _ in range(3)]
    assert len({key.key for key in keys}) == len({key.name for key in keys}) == 3
    assert all(key.valid_release for key in keys)
    first = [key.stream("noise").normals(1, 0)[0] for key in keys]
    assert len(set(first)) == 3


def test_a_secret_key_comes_from_the_operating_system(monkeypatch):
    monkeypatch.setattr(secrets, "token_bytes", lambda size: bytes(range(size)))
    assert RunKey.secret().key == bytes(range(32))


@pytest.mark.parametrize("key", [b"", b"\0" * 32, b"secretsecretsecretsecret", "0123456789abcdef" * 2])
def test_a_secret_key_that_can_be_guessed_is_refused(key):
    with pytest.raises(ValueError, match=r"this secret key can be guessed: draw one .* RunKey.secret\(\)"):
        RunKey("secret", key)


def test_name_and_repr_do_not_reveal_the_key():
    key = RunKey.secret()
    assert len(key.key) == 32
    assert key.key.hex() not in repr(key) and repr(key.key) not in repr(key)
    assert key.name not in key.key.hex()


def test_an_unknown_kind_of_key_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"noise_key is 'hidden': give one of published, secret"):
        RunKey.for_run("hidden", 0)


@pytest.mark.parametrize("word", [0, 2**64 - 1, 2**63, 2**11 - 1], ids=hex)
def test_the_extreme_words_give_finite_numbers_inside_the_open_interval(word, monkeypatch):
    monkeypatch.setattr(Stream, "words", lambda self, count, *counter: np.full(count, word, np.uint64))
    stream = RunKey.published(0).stream("noise")
    uniforms = stream.uniforms(2, 0)
    assert ((uniforms > 0) & (uniforms < 1)).all()
    assert np.isfinite(stream.normals(2, 0)).all() and np.isfinite(stream.laplaces(2, 0)).all()


def test_noise_is_not_a_function_of_a_public_seed():
    """Noise drawn from a generator seeded with the direction's seed would be known to anyone with the seed."""
    steps = range(4000)
    noise = [RunKey.published(0).stream("noise").normals(1, step, 0, 0)[0] for step in steps]
    seeded = [torch.randn(4, generator=torch.Generator().manual_seed(step)).numpy() for step in steps]
    for draw in np.stack(seeded, axis=1):
        assert abs(correlation(noise, draw)) < 6 / len(steps) ** 0.5


def test_the_privacy_room_uses_no_global_generator():
    """Noise, batches and directions use no torch or numpy generator."""
    files = [*HOUSE.glob("privacy/*.py"), *HOUSE.glob("zeroth_order/*.py"), HOUSE / "algorithm.py"]
    assert len(files) > 10
    forbidden = {"random", "manual_seed", "randn", "randn_like", "rand", "randint", "randperm"}
    forbidden |= {"torch.bernoulli", "bernoulli_", "multinomial", "normal", "standard_normal", "rvs"}
    forbidden |= {"default_rng", "Generator", "normal_", "uniform_", "seed_all", "fork_rng", "RandomState"}
    for file in files:
        used = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        names = {node.attr for node in used} | {ast.unparse(node) for node in used}
        looked_at = (
            {"random"} if file.name == "model_requirements.py" else set()
        )  # where it is asked whether a loss has moved one
        assert not names & forbidden - looked_at, file.name
