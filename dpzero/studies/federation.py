"""A federation by scalars over real processes, each client in a network namespace of its own, whose interface counts bytes.

The training rows of a task are dealt out to clients, who train the head of a frozen model with DPZero at client-level
epsilon (`dpzero.federation`). Clients leave before or after they answer, at a given rate, and come back. Beside each run:
central DPZero with the same clients as units, the same key and no drop-out. Settings are the best of GRID by dev accuracy of
central DPZero with a seed that is not reported. Keys are published and the rows are public: nothing here is a private
release. Where the clients add the noise, epsilon assumes secure aggregation, which is not run: the server reads each term.

Bytes on the wire are those of Ethernet frames with TCP/IP headers and acknowledgements, connecting included, by the counters
of the clients' interfaces. Namespaces need root; without them the clients are processes that connect by the loopback
interface, and nothing is counted on the wire.
"""

from __future__ import annotations

import copy
import ctypes
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from ..algorithm import DPZero
from ..federation import Client, Server
from ..federation.messages import ANSWER, ASK
from ..federation.server import Traffic
from ..language.data import assets, tasks
from ..language.models import caches, encoding, losses, text_classifier
from ..privacy import Budget, RunKey, Setting
from ..privacy.sampling import Users
from ..privacy.shared_noise import SharedNoiseBudget
from ..zeroth_order import transcript

TASK, MODEL, MAX_LENGTH = "r8", "minilm", 64
CLIENTS, DRAWN, ROUNDS, EPSILON, DELTA = 200, 40, 300, 6.0, 1e-4
LEAST_SHARES = 100  # half of the clients: the others may be away, or tell the adversary their shares
GRID = {"learning_rate": (1e-2, 2e-2, 4e-2), "clip": (0.5, 1.0, 2.0)}
SETTINGS = {"learning_rate": 2e-2, "clip": 1.0, "smoothing": 1e-3}
SEEDS = (0, 1, 2, 3, 4)
CASES = [
    ("server", 0.0),
    ("server", 0.2),
    ("shared", 0.0),
    ("shared", 0.2),
]  # who adds noise, rate of leaving
FEDKSEED_BYTES = 18_000  # "less than 18 kilobytes" a round: the abstract of arXiv 2312.06353
ROW_BYTES = 20  # of a transcript: scalar, learning rate, checksum
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Problem:
    """Rows of a task as features, the head that is trained on them, and the clients that have the rows."""

    head: nn.Linear
    examples: dict[str, caches.Features]
    clients: int

    @classmethod
    def of_task(cls, task_name: str, model_name: str, clients: int) -> Problem:
        task = tasks.load(task_name)
        texts = encoding.encode(task, model_name, MAX_LENGTH)
        load = cache(lambda: text_classifier.load(model_name, task, "head", 0))
        examples = {
            split: caches.read_features(model_name, load, texts[split], 0, "cpu")
            for split in ("train", "test")
        }
        return cls(caches.read_head(model_name, load, task, 0), examples, clients)

    def base(self) -> text_classifier.HeadAlone:
        return text_classifier.HeadAlone(copy.deepcopy(self.head))

    def users(self) -> Users:
        """Row i is of client i modulo the number of clients."""
        return Users([row % self.clients for row in range(len(self.examples["train"]))])

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        test = self.examples["test"]
        return float((model(test.values, None).argmax(1) == test.labels).double().mean())


LOSS = losses.CrossEntropy(4096, "float32")


def rows() -> Iterator[dict]:
    """One row for each case and seed."""
    torch.set_num_threads(1)
    problem = Problem.of_task(TASK, MODEL, CLIENTS)
    setting = Setting("gaussian", "poisson", "add_remove", CLIENTS, DRAWN, ROUNDS, DELTA)
    for seed in SEEDS:
        central = train_centrally(problem, setting, seed)
        for noise, leaving in CASES:
            yield measure(problem, setting, noise, leaving, seed, central)


def train_centrally(problem: Problem, setting: Setting, seed: int) -> nn.Module:
    """DPZero in one process, on the batches and with the noise of a federation whose server adds it."""
    budget = make_budget(setting, "server", seed)
    users, model = problem.users(), problem.base()
    optimizer = DPZero(model, LOSS, budget, seed=seed, **SETTINGS)
    for drawn in budget.batches():
        examples, numbers = users.examples(drawn)
        optimizer.step(problem.examples["train"][examples], numbers)
    return model


def make_budget(setting: Setting, noise: str, seed: int) -> Budget:
    scale, key = (
        setting.cached_noise_scale(EPSILON, assets.cache_folder() / "calibrations"),
        RunKey.published(seed),
    )
    if noise == "shared":
        return SharedNoiseBudget(setting, scale, key, least_shares=LEAST_SHARES, epsilon_target=EPSILON)
    return Budget(setting, scale, key, noise_arithmetic="exact", unit="user", epsilon_target=EPSILON)


def measure(
    problem: Problem, setting: Setting, noise: str, leaving: float, seed: int, central: nn.Module
) -> dict[str, Any]:
    """One run of a federation: its traffic, what it learns, and who ends with which bits."""
    begun, budget, server_model = time.perf_counter(), make_budget(setting, noise, seed), problem.base()
    with TemporaryDirectory() as folder, networks(problem.clients) as network:
        path = Path(folder) / "transcript"
        with network.listener(problem.clients) as listener:
            server = Server(server_model, budget, listener, seed=seed, **SETTINGS)
            server.write_transcript(path)
            ends = run_clients(problem, network, server, leaving, seed)
        replayed = problem.base()
        transcript.replay(replayed, path)
        wire, header_bytes = network.count_bytes(), path.read_bytes().index(b"\n") + 1
    bits, central_bits = _bits(replayed), _bits(central)
    return {
        "noise_added_by": noise,
        "leaving_rate": leaving,
        "seed": seed,
        "clients": problem.clients,
        "drawn_a_round": setting.batch_size,
        "rounds": setting.steps,
        **_spent(budget),
        "settings_tried_on_dev": math.prod(map(len, GRID.values())),
        "accuracy_test": problem.accuracy(server_model),
        "accuracy_test_central": problem.accuracy(central),
        "same_bits_as_central": bits == central_bits,
        "clients_with_bits_of_replay": sum(end["bits"] == bits for end in ends),
        "left": sum(end["left"] for end in ends),
        **_count(server.traffic, wire, problem.clients, setting.steps, header_bytes),
        "seconds": time.perf_counter() - begun,
    }


def _bits(model: nn.Module) -> str:
    return transcript.digest(list(model.parameters()))


def _spent(budget: Budget) -> dict[str, Any]:
    """Epsilon of a client, and if noise is shared out, what it is with half of the shares that it counts on."""
    spent: dict[str, Any] = {"epsilon_client": budget.epsilon_spent(), "delta": budget.setting.delta}
    spent |= {"valid_release": budget.valid_release, "least_noise_shares": "", "epsilon_at_half_of_them": ""}
    if isinstance(budget, SharedNoiseBudget):
        half = budget.epsilon_of_shares(budget.least_shares // 2)
        spent |= {"least_noise_shares": budget.least_shares, "epsilon_at_half_of_them": half}
    return spent


def _count(
    traffic: Traffic, wire: dict[str, int], clients: int, rounds: int, header_bytes: int
) -> dict[str, Any]:
    """Messages and bytes. Means are over all clients and rounds; payload leaves the header out, which is sent once."""
    mean = {
        "up_bytes_client_round": traffic.up_bytes,
        "down_bytes_client_round": traffic.down_bytes - header_bytes * clients,
        **{f"{way}_wire_bytes_client_round": wire.get(way, math.nan) for way in ("up", "down")},
    }
    return {
        "asked": traffic.asks,
        "answered": traffic.answers,
        "answer_bytes": ANSWER.size,
        "ask_bytes_each_round": ASK.size + ROW_BYTES,
        "header_bytes_once": header_bytes,
        **{name: total / (clients * rounds) for name, total in mean.items()},
        "fedkseed_claim_bytes_round": FEDKSEED_BYTES,
    }


def run_clients(problem: Problem, network: Network, server: Server, leaving: float, seed: int) -> list[dict]:
    """Starts a process for each client, trains, and returns what each client says at its end."""
    context = get_context("fork")  # torch survives it with one thread
    port, processes, ends = server.listener.getsockname()[1], [], []
    trusts_server = not isinstance(server.budget, SharedNoiseBudget)
    for number, place in enumerate(network.places):
        end, given = context.Pipe(duplex=False)
        arguments = (problem, place, port, number, leaving, seed, trusts_server, given)
        processes.append(context.Process(target=run_client, args=arguments, daemon=True))
        processes[-1].start()
        given.close()
        ends.append(end)
    try:
        server.wait_for(problem.clients)
        server.train()
        while not all(end.poll() for end in ends):  # some may have left in the last round, and come back
            server.finish()
            time.sleep(0.01)
        return [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def run_client(
    problem: Problem,
    place: tuple[str, str],
    port: int,
    number: int,
    leaving: float,
    seed: int,
    trusts_server: bool,
    end: Connection,
) -> None:
    """A client's process: it serves, and leaves by a public random number in some rounds, to come back at once."""
    namespace, address = place
    if namespace:
        enter(f"/run/netns/{namespace}")
    own, _ = problem.users().examples(np.array([number]))
    key = RunKey.published(seed)
    examples = problem.examples["train"][own]
    trust: dict[str, Any] = {"trusts_server": True} if trusts_server else {"relies_on": problem.clients}
    client = Client(problem.base(), LOSS, examples, number, key, **trust)
    stream, left = key.stream(f"leaving of client {number}"), 0
    while True:
        with suppress(ConnectionError), socket.create_connection((address, port)) as connection:
            for step in client.asks(connection):
                chance = stream.uniforms(1, step)[0]
                if chance >= leaving / 2:
                    connection.sendall(ANSWER.pack(step, client.answer(step)))
                if chance < leaving:
                    left += 1
                    break
            else:
                break  # the server took leave
    end.send({"bits": _bits(client.model), "left": left})


# -- networks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """The namespace and the server's address of each client. Without namespaces, the loopback interface."""

    server: str
    places: list[tuple[str, str]]

    def listener(self, backlog: int) -> socket.socket:
        with inside(self.server):
            return socket.create_server(("" if self.server else "127.0.0.1", 0), backlog=backlog)

    def count_bytes(self) -> dict[str, int]:
        """Bytes from all clients (up) and to them (down), by the server's interfaces; empty without namespaces."""
        if not self.server:
            return {}
        links = json.loads(_ip("-n", self.server, "-s", "-j", "link", "show", "type", "veth"))
        counted = [link["stats64"] for link in links]
        return {"up": sum(c["rx"]["bytes"] for c in counted), "down": sum(c["tx"]["bytes"] for c in counted)}


@contextmanager
def networks(clients: int) -> Iterator[Network]:
    """A namespace for the server and one for each client, each joined to the server's by a link of its own."""
    if not can_make_namespaces():
        yield Network("", [("", "127.0.0.1")] * clients)
        return
    prefix = f"dpzero-{os.getpid()}"
    server, names = f"{prefix}-server", [f"{prefix}-{number}" for number in range(clients)]
    try:
        _ip_lines(f"netns add {name}" for name in (server, *names))
        _ip_lines(
            f"link add link{number} netns {server} type veth peer name eth0 netns {name}"
            for number, name in enumerate(names)
        )
        networks = [f"10.77.{number // 64}.{4 * (number % 64)}" for number in range(clients)]
        firsts, seconds = ([str(IPv4Address(address) + host) for address in networks] for host in (1, 2))
        ends = [line for n, address in enumerate(firsts) for line in _set_up(f"link{n}", address)]
        _ip_lines(ends, "-n", server)
        for name, address in zip(names, seconds, strict=True):
            _ip_lines(_set_up("eth0", address), "-n", name)
        yield Network(server, list(zip(names, firsts, strict=True)))
    finally:
        _ip_lines((f"netns del {name}" for name in (server, *names)), "-force")


def _set_up(link: str, address: str) -> list[str]:
    """Without IPv6, which would send packets of its own."""
    no_ipv6, has_address = f"link set {link} addrgenmode none", f"addr add {address}/30 dev {link}"
    return [no_ipv6, has_address, f"link set {link} up"]


def can_make_namespaces() -> bool:
    name = f"dpzero-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread opens is in a namespace; in its own if that has no name."""
    if not namespace:
        yield
        return
    with Path("/proc/thread-self/ns/net").open("rb") as own:
        enter(f"/run/netns/{namespace}")
        try:
            yield
        finally:
            _set(own.fileno())


def enter(path: str) -> None:
    with Path(path).open("rb") as namespace:
        _set(namespace.fileno())


def _set(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered: run as root")


def _ip(*arguments: str, input: str = "") -> str:
    return subprocess.run(
        ["ip", *arguments], input=input, capture_output=True, check=True, encoding="utf-8"
    ).stdout


def _ip_lines(lines: Iterable[str], *options: str) -> None:
    _ip(*options, "-batch", "-", input="\n".join(lines))
