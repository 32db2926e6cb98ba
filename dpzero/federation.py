"""Federation by scalars: clients with rows of their own train one model, and a round moves 12 bytes up and 28 down.

A server and its clients hold the same base model. In each round the server asks the clients that its budget drew (or all,
if the clients add the noise) and sends them what they lack of the transcript. A client answers with its clipped slope
along the round's direction, which the public seed gives. The server releases the noisy sum over the expected number of
clients: the next row of the transcript. Base model and transcript are the model, so all hold the same bits.

    server -> client    step, count (uint32 each), count bytes of the transcript: 20 for each round since the last
    client -> server    step (uint32), slope over clip * 2^-40 (int64, as secure aggregation sums)

Privacy. The unit is the client, whatever rows it has: its value is the clipped mean slope of its rows. Noise is added once,
by a server that is trusted with the values (`Budget` with unit user), or shared out among the clients, with a server that
need not be trusted if it learns the sums alone (`SharedNoiseBudget`). Secure aggregation, and encrypted and authenticated
connections, are assumed, not implemented. Who sees the traffic sees which clients are asked: with a `Budget` the adversary
of its epsilon sees the transcript alone.

Clients that drop out. A client that is away, leaves before it answers or answers late adds 0, which is within the clip, and
gets the rows that it lacks when it comes back. With a trusted server that costs no privacy, even if its own rows made it
leave, as long as other clients leave for no reason in its rows. With noise that is shared out its share is missing, and
the server sees who answers: nobody may then leave for a reason in private rows, and epsilon holds for rounds with enough
shares (see `privacy.shared_noise`). A client that lies can spoil the model, but no other client's privacy beyond its share.

The idea of training by seeds and scalars is that of FedKSeed (Qin et al., ICML 2024, arXiv 2312.06353), which has no noise,
takes several local steps along K candidate seeds in a round, and sends all K accumulated scalars.
"""

from __future__ import annotations

import json
import math
import selectors
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from .algorithm import DPZero
from .privacy import Budget, Event, RunKey, clip_scalars
from .privacy.shared_noise import NoiseShare, SharedNoiseBudget, from_grid, to_grid
from .zeroth_order import TwoPoint, transcript
from .zeroth_order.batches import user_means
from .zeroth_order.loss_checks import explained
from .zeroth_order.model_requirements import trainable
from .zeroth_order.perturbation import points
from .zeroth_order.protocols import PerExampleLoss

HELLO = struct.Struct("<II")  # number of the client, bytes of the transcript that it has
ASK = struct.Struct("<II")  # step, bytes of the transcript that follow
ANSWER = struct.Struct("<Iq")  # step, term of the sum
END = 2**32 - 1  # in place of a step: the last rows follow
AGREED = (
    "format",
    "law",
    "groups",
    "perturbed_on_read",
    "still",
    "base_sha256",
)  # of the transcript's header


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

    def _scalars(self, batch: Any, count: int, users: np.ndarray | None) -> list[float]:
        self.budget.record_influence(0.0)  # each client evaluates its rows alone
        terms = self._collect(batch.tolist())
        for k, _, scale in points(1, self.smoothing, one_sided=False):  # where the clients' weights were
            self.perturbation.plan_point(self.steps_taken, k, scale)
        if isinstance(self.budget, SharedNoiseBudget):
            total = self.budget.release_shares(list(terms.values()), self.clip)
        else:
            answers = [from_grid(terms.get(client, 0), self.clip) for client in batch.tolist()]
            total = self.noisy_sum(torch.tensor(answers, dtype=torch.float64))  # clips a false answer, too
        return [total / self.batch_size]

    def _privacy_header(self, existing: Mapping[str, Any]) -> dict[str, Any]:
        shared = isinstance(self.budget, SharedNoiseBudget)
        least = {"least_noise_shares": self.budget.least_shares} if shared else {}  # type: ignore[attr-defined]
        return super()._privacy_header(existing) | least

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
                number, held = HELLO.unpack(_receive(connection, HELLO.size))
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


class Client:
    """A client: its rows, and a copy of the base model that moves by the transcript.

    Its settings are those of the transcript's header. It answers each step once and in order, whoever asks, so that no two
    answers have the same noise.

    Args:
        model: the base model, as the server has it. It is trained in place.
        loss: (model, examples) -> one loss an example.
        examples: the client's rows; they may be none.
        number: of the client, from 0.
        key: of its share of the noise; secret by default.
    """

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss, examples: Any, number: int, key: RunKey | None = None
    ) -> None:
        self.model, self.loss, self.examples, self.number = model, loss, examples, number
        self.key = key or RunKey.secret()
        self.held = 0  # bytes of the transcript
        self.share: NoiseShare | None = None
        self._moves: _Moves
        self._answered = -1

    def serve(self, connection: socket) -> None:
        """Answers the server until it takes leave. Raises ConnectionError if it is gone."""
        for step in self.asks(connection):
            connection.sendall(ANSWER.pack(step, self.answer(step)))

    def asks(self, connection: socket) -> Iterator[int]:
        """Joins, and yields the steps that the server asks for, after moving by the rows that it sends."""
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        connection.sendall(HELLO.pack(self.number, self.held))
        while True:
            step, size = ASK.unpack(_receive(connection, ASK.size))
            self.follow(_receive(connection, size))
            if step == END:
                self._moves.perturbation.apply()
                return
            yield step

    @torch.no_grad()
    def answer(self, step: int) -> int:
        """The term of the sum, in units of clip * 2^-40.

        Raises:
            ValueError: another step than the next one, one that was answered before, or one beyond the budget.
        """
        if not self._answered < step == self._moves.steps_taken < self._steps:
            raise ValueError(
                f"client {self.number} is asked for step {step}, has taken {self._moves.steps_taken} of {self._steps} and "
                f"answered step {self._answered} last: it answers each step once, so distrust the server"
            )
        self._answered, term = step, 0
        if len(self.examples) and (self.share is None or self.share.takes_part(step)):
            term = to_grid(self._clipped(self._moves.slope(self.examples)), self.clip)
        return term if self.share is None else self.share.add(term, step)

    @torch.no_grad()
    def follow(self, data: bytes) -> None:
        """Moves by further bytes of the transcript.

        Raises:
            ValueError: a transcript of another base model or of other settings than can be had here, or damaged bytes.
        """
        rows = data
        if not self.held:
            line, _, rows = data.partition(b"\n")
            self._begin(json.loads(line))
            self._checksum = zlib.crc32(line + b"\n")
        steps, self._checksum = transcript.parse_rows(
            self._header, rows, self._checksum, self._moves.steps_taken
        )
        for scalars, rates in zip(steps.scalars.tolist(), steps.rates.tolist(), strict=True):
            self._moves.follow(scalars, rates)
        self.held += len(data)

    def _begin(self, header: transcript.Header) -> None:
        """Sets up by the header of a transcript."""
        privacy = header["privacy"]
        event = Event(**{f.name: privacy[f.name] for f in fields(Event)})
        if event.noise_key == "secret" and not self.key.valid_release:
            raise ValueError(f"client {self.number} has a published key in a private run: leave out its key")
        self._header, self.clip, self._steps = header, float(privacy["clip"]), event.steps
        if least := privacy.get("least_noise_shares"):
            self.share = NoiseShare(event.setting(), event.noise_scale, least, self.number, self.key)
        self._moves = _Moves.by_header(self.model, self.loss, header)

    def _clipped(self, slope: Tensor) -> float:
        return float(clip_scalars(slope, self.clip))


class _Moves(TwoPoint):
    """The two halves of a step: the slope here, then the move by a scalar from elsewhere."""

    title = "client of a federation"
    _visited = -1  # the last step whose points the weights went through

    @classmethod
    def by_header(cls, model: nn.Module, loss: PerExampleLoss, header: transcript.Header) -> _Moves:
        """Raises ValueError if base model, parameters or directions are not those of the header."""
        law, trained = header["law"], trainable(model.parameters())
        moves = cls(
            model,
            loss,
            header["privacy"]["batch_size"],
            learning_rate=0.0,  # rates are those of the rows
            smoothing=header["smoothing"],
            seed=law["seed"],
            direction_law=law["name"],
            direction_rank=law["rank"],
            perturb="on_read" if len(header["perturbed_on_read"]) == len(trained) else "in_place",
            groups=[{"params": [trained[j] for j in group]} for group in header["groups"]],
        )
        moves.moment = transcript.SecondMoment(header["second_moment"], noise=header.get("noise", 0.0))
        mine = json.loads(json.dumps(moves._header(transcript.digest(trained), {})))
        if other := [name for name in AGREED if mine[name] != header[name]]:
            raise ValueError(
                f"this client has another {other[0]} than the server's transcript: start from the server's base model, "
                "parameters and version"
            )
        return moves

    def slope(self, examples: Any) -> Tensor:
        """The mean slope of some examples along the direction of this step, float64 [1]."""
        self.model_check.check()
        with self.model_check.deterministic(), explained():
            losses = self._losses_at_points(examples, len(examples))
        self._visited = self.steps_taken
        one_user = np.zeros(len(examples), np.int64)
        return user_means((losses[0] - losses[1]).T, one_user)[:, 0] / (2 * self.smoothing)

    def follow(self, scalars: Sequence[float], rates: Sequence[float]) -> None:
        """Moves by a row of the transcript as the server does: through the points of the step, if not there yet."""
        if not math.isfinite(sum(scalars) + sum(rates)):
            raise ValueError(f"the scalar of step {self.steps_taken} is not finite: distrust the server")
        if self._visited != self.steps_taken:
            for k, _, scale in points(self.directions, self.smoothing, self.one_sided):
                self.perturbation.plan_point(self.steps_taken, k, scale)
        self.perturbation.plan_update(
            self.steps_taken, self.moment.scaled(scalars), [-rate for rate in rates]
        )
        self.steps_taken += 1
        if self.steps_taken % transcript.STEPS_A_PASS == 0:
            self.perturbation.apply()


def _receive(connection: socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises ConnectionError if the other side is gone."""
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError(f"the connection was closed after {len(data)} of {size} bytes")
        data += part
    return bytes(data)
