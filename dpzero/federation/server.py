"""The server: it asks clients for their slopes, releases the noisy sum and sends the transcript on."""

from __future__ import annotations

import math
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from ..algorithm import DPZero
from ..privacy import Budget
from ..privacy.shared_noise import SharedNoiseBudget, from_grid
from ..zeroth_order.perturbation import points
from .messages import ANSWER, ASK, END, HELLO, receive


class Server(DPZero):
    """DPZero whose units are clients: `step` asks them for their slopes.

    It writes a transcript first (`write_transcript`), which the clients get. Clients join at any time.

    Args:
        model: the base model, with the parameters that the clients train.
        budget: unit user, of as many units as there are clients.
        listener: a socket that listens. The caller closes it.
        timeout_seconds: how long a round waits for answers.
        settings: learning_rate, clip and others of `DPZero`.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: Budget,
        listener: socket,
        *,
        timeout_seconds: float = 60.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, _is_with_clients, budget, **settings)
        if budget.unit != "user" or budget.setting.directions != 1:
            raise ValueError("the unit of a federation is the client: make the budget with unit='user'")
        self.listener, self.timeout_seconds = listener, timeout_seconds
        self.traffic = Traffic()
        self._links: dict[int, _Link] = {}
        self._asked: list[int] = []  # clients of this round
        self._terms: dict[int, int] = {}  # client -> its answer
        listener.setblocking(False)

    def train(self) -> None:
        """Takes the steps that the budget has left."""
        for clients, users in self.budget.batches(lambda drawn: (drawn, drawn)):
            self.step(clients, users)

    def wait_for(self, count: int) -> None:
        """Waits until this many clients have joined. Raises TimeoutError after `timeout_seconds`."""
        deadline = time.monotonic() + self.timeout_seconds
        while len(self._links) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._links)} of {count} clients joined: start the others")
            time.sleep(0.01)
            self._accept()

    def finish(self) -> None:
        """Sends all clients the rows that they lack, and takes leave of them. Again, for those that come back later."""
        self._accept()
        data = self._transcript_bytes()
        for link in list(self._links.values()):
            self._ask(link, END, data)
            self._drop(link)

    def _losses_at_points(self, batch: Any, count: int) -> torch.Tensor:
        """Asks the clients, who keep their losses: here they are not a number."""
        self.budget.record_influence(0.0)  # each client evaluates its rows alone
        self._asked = batch.tolist()
        self._terms = self._collect(self._asked)
        for k, _, scale in points(1, self.smoothing, one_sided=False):  # where the clients' weights were
            self.perturbation.plan_point(self.steps_taken, k, scale)
        return torch.full((2, 1, count), math.nan, dtype=torch.float64)

    def _mean_loss(self, losses: torch.Tensor) -> None:
        """It is with the clients."""

    def released_scalars(self, first: Any, second: Any, users: np.ndarray | None) -> list[float]:
        """The scalar of the step, from the clients' answers."""
        terms = self._terms
        if isinstance(self.budget, SharedNoiseBudget):
            total = self.budget.release_shares(list(terms.values()), self.clip)
        else:
            answers = [from_grid(terms.get(client, 0), self.clip) for client in self._asked]
            total = self.noisy_sum(torch.tensor(answers, dtype=torch.float64))  # clips a false answer, too
        return [total / self.batch_size]

    def _privacy_header(self, existing: Mapping[str, Any]) -> dict[str, Any]:
        conditions = self.budget.conditions if isinstance(self.budget, SharedNoiseBudget) else {}
        return super()._privacy_header(existing) | conditions

    # -- connections

    def _collect(self, clients: Sequence[int]) -> dict[int, int]:
        """Client -> its term, of those that answered in time."""
        self._accept()
        data, step, terms = self._transcript_bytes(), self.steps_taken, dict[int, int]()
        asked = [self._links[client] for client in clients if client in self._links]
        with selectors.DefaultSelector() as selector:
            for link in asked:
                if self._ask(link, step, data):
                    selector.register(link.connection, selectors.EVENT_READ, link)
            deadline = time.monotonic() + self.timeout_seconds
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    link = key.data
                    alive = link.read()
                    term = link.answer(step)
                    if term is not None:
                        terms[link.number] = term
                        self.traffic.answers += 1
                        self.traffic.up_bytes += ANSWER.size
                    if term is not None or not alive:
                        selector.unregister(link.connection)
                    if not alive:
                        self._drop(link)
        return terms

    def _ask(self, link: _Link, step: int, data: bytes) -> bool:
        """Whether the client could be asked. It gets what it lacks of the transcript."""
        lacking = data[link.held :]
        try:
            link.connection.sendall(ASK.pack(step, len(lacking)) + lacking)
        except OSError:
            self._drop(link)
            return False
        self.traffic.asks += step != END
        self.traffic.down_bytes += ASK.size + len(lacking)
        link.held = len(data)
        return True

    def _accept(self) -> None:
        """Lets clients join that have connected. One that was here before takes the place of its old connection."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            connection.settimeout(self.timeout_seconds)
            connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            try:
                number, held = HELLO.unpack(receive(connection, HELLO.size))
            except OSError:
                connection.close()
                continue
            if number in self._links:
                self._drop(self._links[number])
            self._links[number] = _Link(connection, number, held)

    def _drop(self, link: _Link) -> None:
        link.connection.close()
        if self._links.get(link.number) is link:
            del self._links[link.number]

    def _transcript_bytes(self) -> bytes:
        if self.transcript is None:
            raise ValueError(
                "a federation exchanges its transcript: call write_transcript before the first step"
            )
        return self.transcript.path.read_bytes()


def _is_with_clients(model: nn.Module, batch: Any) -> NoReturn:
    raise ValueError("a server has no rows: its clients take the losses")


@dataclass
class Traffic:
    """Payload of the rounds, in bytes, without the overhead of the transport."""

    asks: int = 0
    answers: int = 0
    down_bytes: int = 0
    up_bytes: int = 0


@dataclass
class _Link:
    """The connection of a client."""

    connection: socket
    number: int
    held: int  # bytes of the transcript that it has
    unread: bytearray = field(default_factory=bytearray)

    def read(self) -> bool:
        """Reads what has arrived. Whether the client is still there."""
        try:
            data = self.connection.recv(ANSWER.size - len(self.unread))
        except OSError:
            return False
        self.unread += data
        return bool(data)

    def answer(self, step: int) -> int | None:
        """The answer to this step, if it is there and whole. One to an earlier step is too late, and lost."""
        if len(self.unread) < ANSWER.size:
            return None
        answered, term = ANSWER.unpack(self.unread)
        self.unread.clear()
        return int(term) if answered == step else None
