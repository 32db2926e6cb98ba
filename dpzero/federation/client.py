"""A client: it answers with the clipped slope of its rows, and moves by the rows of the transcript."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any

import torch
from torch import nn

from ..privacy import Event, RunKey, clip_scalars
from ..privacy.shared_noise import NoiseShare, SharedNoiseBudget, to_grid
from ..zeroth_order import transcript
from ..zeroth_order.protocols import PerExampleLoss
from .messages import ANSWER, ASK, END, HELLO, receive
from .moves import Moves

SHARES = "least_noise_shares"  # in the header if clients share out the noise


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
        allowed: the largest epsilon and delta of all rounds to which its owner agrees; without it the client takes any that
            the server's settings give.
        trusts_server: whether its owner lets the server see its answers without noise, and add the noise. Without it the
            client joins only where the clients add the noise.
        relies_on: with noise by the clients, how many of them, this one among them, its owner believes to add their share.
            A server cannot make the shares smaller than that number allows.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        examples: Any,
        number: int,
        key: RunKey | None = None,
        allowed: tuple[float, float] | None = None,
        *,
        trusts_server: bool = False,
        relies_on: int = 0,
    ) -> None:
        self.model, self.loss, self.examples, self.number = model, loss, examples, number
        self.key, self.allowed = key or RunKey.secret(), allowed
        self.trusts_server, self.relies_on = trusts_server, relies_on
        self.held = 0  # bytes of the transcript
        self.share: NoiseShare | None = None
        self._moves: Moves
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
            step, size = ASK.unpack(receive(connection, ASK.size))
            self.follow(receive(connection, size))
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
            slope = clip_scalars(self._moves.slope(self.examples), self.clip)
            term = to_grid(float(slope), self.clip)
        return term if self.share is None else self.share.add(term, step)

    @torch.no_grad()
    def follow(self, data: bytes) -> None:
        """Moves by further bytes of the transcript.

        Raises:
            ValueError: a transcript of another base model or of other settings than can be had here, of noise that the owner
                did not agree to, or damaged bytes.
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
        self._check_noise(event, privacy)
        self._check_allowed(event)
        self._header, self.clip, self._steps = header, float(privacy["clip"]), event.steps
        if SHARES in privacy:
            self.share = NoiseShare(
                event.setting(), event.noise_scale, privacy[SHARES], self.number, self.key
            )
        self._moves = Moves.by_header(self.model, self.loss, header)

    def _check_noise(self, event: Event, privacy: dict[str, Any]) -> None:
        """The settings come from the server, which must not talk the client out of its noise."""
        if SHARES in privacy:
            try:
                SharedNoiseBudget.check_event(event, privacy[SHARES])
            except ValueError as error:
                raise ValueError(f"client {self.number} refuses the server's settings: {error}") from None
            if privacy[SHARES] > self.relies_on and not self.trusts_server:
                raise ValueError(
                    f"the noise is that of {privacy[SHARES]} shares, and client {self.number} relies on {self.relies_on}: make "
                    f"the client with relies_on={privacy[SHARES]} if its owner believes that so many clients add theirs"
                )
        elif not self.trusts_server:
            raise ValueError(
                f"the server would see what client {self.number} answers and add the noise itself: make the client with "
                "trusts_server=True if its owner agrees, or else the server with a SharedNoiseBudget"
            )

    def _check_allowed(self, event: Event) -> None:
        """The settings come from the server: what they cost is computed here."""
        if event.noise_key == "secret" and not self.key.valid_release:
            raise ValueError(f"client {self.number} has a published key in a private run: leave out its key")
        if self.allowed is not None:
            epsilon, delta = self.allowed
            cost = replace(event.setting(), delta=delta).epsilon(event.noise_scale)
            if cost > epsilon:
                raise ValueError(
                    f"the server's settings cost epsilon {cost:.4g} at delta {delta:g}, and client {self.number} allows "
                    f"{epsilon:g}: ask the server for more noise or fewer steps"
                )
