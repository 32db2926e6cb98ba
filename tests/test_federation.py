"""A federation over sockets: all hold the same bits, those of a central run, whoever drops out, and epsilon is the ledger's."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dpzero import DPZero
from dpzero.federation import Client, Server
from dpzero.federation.messages import ANSWER, ASK, HELLO
from dpzero.privacy import Budget, RunKey, Setting
from dpzero.privacy.mechanisms import GRID_BITS
from dpzero.privacy.sampling import Users
from dpzero.privacy.shared_noise import SharedNoiseBudget
from dpzero.zeroth_order import transcript

CLIENTS, ROWS, STEPS, LEAST = 6, 3, 70, 4  # more steps than a replay takes in a pass
SETTING = Setting("gaussian", "poisson", "add_remove", CLIENTS, 3, STEPS, 1e-4)
DATA = torch.randn(CLIENTS * ROWS, 6, generator=torch.Generator().manual_seed(0))
SETTINGS = {"learning_rate": 0.01, "clip": 5.0, "smoothing": 0.01, "seed": 3}
KEY = RunKey.published(5)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def base() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def loss(model, batch):
    return torch.stack([model(x[None])[0].square().sum() for x in batch])  # one by one: bits of their own


def bits(model: nn.Module) -> str:
    return transcript.digest(list(model.parameters()))


def budget(noise: str, key: RunKey = KEY) -> Budget:
    if noise == "shared":
        return SharedNoiseBudget(SETTING, 2.0, key, least_shares=LEAST)
    return Budget(SETTING, 2.0, key, noise_arithmetic="exact", unit="user")


def client(number: int, key: RunKey | None = KEY, examples: torch.Tensor | None = None) -> Client:
    own = DATA[number * ROWS : (number + 1) * ROWS] if examples is None else examples
    return Client(base(), loss, own, number, key, trusts_server=True)


def serve(client: Client, address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        client.serve(connection)


def serve_and_leave(leaves: Callable[[int], str]) -> Callable[[Client, tuple[str, int]], None]:
    """A client that leaves "before" or "after" it answers some steps, and comes back."""

    def run(client: Client, address: tuple[str, int]) -> None:
        while True:
            with suppress(ConnectionError), socket.create_connection(address) as connection:
                for step in client.asks(connection):
                    leave = leaves(step)
                    if leave != "before":
                        connection.sendall(ANSWER.pack(step, client.answer(step)))
                    if leave:
                        break
                else:
                    return

    return run


def federate(
    budget: Budget,
    folder: Path,
    clients: list[Client],
    runs: dict[int, Callable[[Client, tuple[str, int]], None]] | None = None,
) -> Server:
    """Trains with a thread for each client; `runs` are those that do not just serve."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        threads = [
            threading.Thread(target=(runs or {}).get(c.number, serve), args=(c, address), daemon=True)
            for c in clients
        ]
        for thread in threads:
            thread.start()
        server = Server(base(), budget, listener, timeout_seconds=30, **SETTINGS)
        server.write_transcript(folder / "transcript")
        server.wait_for(len(clients))
        server.train()
        while any(thread.is_alive() for thread in threads):
            server.finish()
            threads[0].join(0.01)
    return server


def replayed(folder: Path) -> str:
    model = base()
    transcript.replay(model, folder / "transcript")
    return bits(model)


@pytest.mark.parametrize("noise", ["server", "shared"])
def test_all_clients_end_with_the_bits_of_the_servers_replay(noise, tmp_path):
    clients = [client(number) for number in range(CLIENTS)]
    server = federate(budget(noise), tmp_path, clients)
    assert {bits(c.model) for c in clients} == {bits(server.model)} == {replayed(tmp_path)} != {bits(base())}


def test_a_federation_takes_the_steps_of_a_central_run_to_the_bit(tmp_path):
    server = federate(budget("server"), tmp_path, [client(number) for number in range(CLIENTS)])
    central_budget = budget("server", RunKey.published(5))
    central, users = DPZero(base(), loss, central_budget, **SETTINGS), Users(np.repeat(range(CLIENTS), ROWS))
    central.write_transcript(tmp_path / "central")
    for drawn in central_budget.batches():
        rows, numbers = users.examples(drawn)
        central.step(DATA[rows], numbers)
    assert bits(central.model) == bits(server.model)
    read = [transcript.read(tmp_path / name) for name in ("central", "transcript")]
    assert read[0].scalars.tolist() == read[1].scalars.tolist()
    assert central_budget.epsilon_spent() == server.budget.epsilon_spent()


@pytest.mark.parametrize("noise", ["server", "shared"])
def test_clients_that_leave_keep_bits_and_epsilon(noise, tmp_path):
    clients = [client(number) for number in range(CLIENTS)]
    before = serve_and_leave(lambda step: "before" if step % 5 == 0 else "")
    after = serve_and_leave(lambda step: "after" if step % 7 == 3 else "")
    server = federate(budget(noise), tmp_path, clients, {1: before, 2: after})
    assert {bits(c.model) for c in clients} == {bits(server.model)} == {replayed(tmp_path)}
    assert len(server.budget.ledger) == STEPS and server.traffic.answers < server.traffic.asks
    untouched = SETTING.epsilon(2.0)
    assert server.budget.epsilon_spent() == pytest.approx(untouched, rel=1e-6)
    assert server.budget.epsilon_spent() >= untouched


def test_a_client_that_never_comes_counts_as_zero(tmp_path):
    """Its rows might as well be none: the bits are those of a federation where it has none."""
    absent = federate(
        budget("server"), tmp_path / "absent", [client(number) for number in range(CLIENTS - 1)]
    )
    without = [client(number) for number in range(CLIENTS - 1)] + [client(CLIENTS - 1, examples=DATA[:0])]
    assert bits(federate(budget("server"), tmp_path / "none", without).model) == bits(absent.model)


def test_too_few_answers_release_nothing(tmp_path):
    server = federate(budget("shared"), tmp_path, [client(number) for number in range(LEAST - 1)])
    assert not transcript.read(tmp_path / "transcript").scalars.any()
    assert len(server.budget.ledger) == STEPS


def test_a_round_is_28_bytes_down_and_12_up(tmp_path):
    server = federate(budget("shared"), tmp_path, [client(number) for number in range(CLIENTS)])
    rounds, header = CLIENTS * STEPS, (tmp_path / "transcript").read_bytes().index(b"\n") + 1
    assert (server.traffic.asks, server.traffic.answers) == (rounds, rounds)
    assert server.traffic.up_bytes == 12 * rounds
    # the row of a round comes with the question of the next one; the last, and the first question, are 8 + 20 together
    assert server.traffic.down_bytes == 28 * rounds + CLIENTS * (header + ASK.size)


@pytest.mark.parametrize("value", [1e30, -1e30, math.inf, -math.inf, math.nan])
def test_a_worst_case_client_adds_at_most_the_clip(value, tmp_path):
    def worst(model, batch):
        sign = float(torch.sign(next(model.parameters())[0, 0] - next(base().parameters())[0, 0]))
        return torch.full((len(batch),), value * sign if sign else 0.0)

    extreme = Client(base(), worst, DATA[:ROWS], 0, KEY, trusts_server=True)
    extreme.follow(_header(tmp_path))
    assert abs(extreme.answer(0)) == (0 if math.isnan(value) else 2**GRID_BITS)


def test_a_false_answer_is_clipped_by_the_server(tmp_path):
    """A client that answers far beyond the clip moves a scalar by the clip alone."""

    def lie(client: Client, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as connection:
            for step in client.asks(connection):
                connection.sendall(ANSWER.pack(step, 2**62))

    def say_the_clip(client: Client, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as connection:
            for step in client.asks(connection):
                connection.sendall(ANSWER.pack(step, 2**GRID_BITS))

    ends = [
        bits(federate(budget("server"), tmp_path / run.__name__, [client(0)], {0: run}).model)
        for run in (lie, say_the_clip)
    ]
    assert ends[0] == ends[1]


def test_releases_are_valid_under_keys_that_never_leave_their_owners(tmp_path):
    for noise in ("server", "shared"):
        clients = [client(number, key=None) for number in range(CLIENTS)]
        server = federate(budget(noise, RunKey.secret()), tmp_path / noise, clients)
        assert server.budget.valid_release
        sent = (tmp_path / noise / "transcript").read_bytes()
        keys = [server.budget.key, *(c.key for c in clients)]
        assert not any(key.key in sent or key.key.hex().encode() in sent for key in keys)
        assert len({key.name for key in keys}) == CLIENTS + 1


def test_a_client_answers_each_step_once(tmp_path):
    asked = client(0)
    asked.follow(_header(tmp_path))
    asked.answer(0)
    for step in (0, 1):
        with pytest.raises(ValueError, match="it answers each step once"):
            asked.answer(step)


def test_a_client_refuses_another_base_model_damaged_rows_and_a_published_key(tmp_path):
    header = _header(tmp_path)
    other = client(0)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    with pytest.raises(ValueError, match="another base_sha256"):
        other.follow(header)
    with pytest.raises(ValueError, match="in the row of step 0"):
        client(0).follow(header + bytes(20))
    with pytest.raises(ValueError, match="has a published key in a private run"):
        client(0).follow(_header(tmp_path / "secret", RunKey.secret()))


def test_a_client_refuses_settings_that_cost_more_than_its_owner_allows(tmp_path):
    header, cost = _header(tmp_path), SETTING.epsilon(2.0)
    for allowed in (cost * 1.001, cost * 0.999):
        wary = Client(base(), loss, DATA[:ROWS], 0, KEY, (allowed, SETTING.delta), trusts_server=True)
        if allowed >= cost:
            wary.follow(header)
        else:
            with pytest.raises(ValueError, match=r"cost epsilon .* and client 0 allows"):
                wary.follow(header)


def test_a_client_joins_a_server_that_adds_the_noise_only_if_its_owner_trusts_it(tmp_path):
    header, wary = _header(tmp_path), Client(base(), loss, DATA[:ROWS], 0, KEY, relies_on=LEAST)
    with pytest.raises(ValueError, match="make the client with trusts_server=True if its owner agrees"):
        wary.follow(header)
    wary.follow(_header(tmp_path / "shared", noise="shared"))
    assert wary.share is not None
    Client(base(), loss, DATA[:ROWS], 0, KEY, trusts_server=True).follow(header)


def test_a_client_refuses_noise_of_more_shares_than_its_owner_relies_on(tmp_path):
    """A server that makes up clients could make each share small."""
    wary = Client(base(), loss, DATA[:ROWS], 0, KEY, relies_on=LEAST - 1)
    with pytest.raises(
        ValueError, match=f"noise is that of {LEAST} shares, and client 0 relies on {LEAST - 1}"
    ):
        wary.follow(_header(tmp_path, noise="shared"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("least_noise_shares", least) for least in (CLIENTS + 1, 10**6, 0, -1, 0.5, None)),
        *(("noise_scale", scale) for scale in (0.0, -2.0, math.inf, math.nan)),
        ("mechanism", "laplace"),
        ("directions", 2),
        ("group_size", 2),
        ("unit", "example"),
        ("noise_arithmetic", "float"),
        ("first_share", 0.5),
    ],
)
def test_a_client_refuses_settings_that_would_leave_it_without_the_noise_of_shares(name, value, tmp_path):
    header = json.loads(_header(tmp_path, noise="shared"))
    header["privacy"][name] = value
    wary = Client(base(), loss, DATA[:ROWS], 0, KEY, trusts_server=True)
    with pytest.raises(ValueError, match="client 0 refuses the server's settings"):
        wary.follow(json.dumps(header).encode() + b"\n")
    assert wary.share is None


def test_the_header_of_shared_noise_names_what_its_epsilon_assumes(tmp_path):
    shared, server = (json.loads(_header(tmp_path / n, noise=n))["privacy"] for n in ("shared", "server"))
    assert (shared["assumes"], shared["least_noise_shares"]) == ("secure aggregation", LEAST)
    assert "assumes" not in server


def test_an_answer_that_comes_too_late_is_lost(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener, _raw(listener.getsockname()) as connection:
        server = Server(base(), budget("shared"), listener, timeout_seconds=0.2, **SETTINGS)
        server.write_transcript(tmp_path / "transcript")
        server.wait_for(1)
        rounds = server.budget.batches(lambda drawn: (drawn, drawn))
        server.step(*next(rounds))
        connection.sendall(ANSWER.pack(0, 1) + ANSWER.pack(1, 1))
        server.step(*next(rounds))
    assert (server.traffic.asks, server.traffic.answers) == (2, 1)


def test_a_budget_of_examples_is_no_federation():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ValueError, match="unit='user'"):
        Server(base(), Budget(SETTING, 2.0, KEY), listener, **SETTINGS)


def _raw(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address)
    connection.sendall(HELLO.pack(0, 0))
    return connection


def _header(folder: Path, key: RunKey = KEY, noise: str = "server") -> bytes:
    """The transcript of a server before its first step."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Server(base(), budget(noise, key), listener, **SETTINGS).write_transcript(folder / "header")
    return (folder / "header").read_bytes()
