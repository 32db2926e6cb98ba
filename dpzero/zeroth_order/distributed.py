"""Several processes, one run: each takes the losses of its share of a batch, and only scalars travel.

Rank 0 gathers the sums, makes the step's scalars of them, writes these down and hands them out; all ranks then move by the same scalars
along the same directions. A sum is exact but for one rounding at the end, so it does not depend on who added what: any number
of ranks takes the same steps, bit for bit, and a run that lost a rank goes on with those that are left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import RankFailure

WORDS = 3  # float64 that stand for a sum: its leading 159 bits
CHECK_EVERY = 100  # steps: a digest of all trained weights takes as long as reading them
END = -1  # in place of a message's size: there will be none


def exact_sum(terms: Sequence[float]) -> float:
    """The sum, rounded once; not a number where infinite terms cancel."""
    try:
        return math.fsum(terms)
    except (ValueError, OverflowError):
        return math.nan


def words(terms: Sequence[float]) -> list[float]:
    """WORDS numbers whose sum is that of the terms, each the rest that those before it left."""
    found: list[float] = []
    for _ in range(WORDS):
        found.append(
            exact_sum([*terms, *(-word for word in found)]) if all(map(math.isfinite, found)) else 0.0
        )
    return found


class Dismissed(Exception):
    """Rank 0 has ended the run, and this rank has nothing more to do."""


class Ranks:
    """One process, alone: nothing is exchanged. `Star` is several."""

    rank, size, backend = 0, 1, None
    sent_bytes = received_bytes = 0  # by this rank, without what the transport adds

    def terms(self, values: Tensor) -> list[list[float]]:
        """float64 [n, K] of this rank -> for each column, on rank 0, numbers whose exact sum is that of all ranks.

        On the other ranks there are none: they take what `agreed` gives them.
        """
        return values.T.tolist()

    def agreed(self, scalars: Sequence[float]) -> list[float]:
        """The scalars of rank 0."""
        return list(scalars)

    def shared(self, data: bytes) -> bytes:
        """The bytes of rank 0."""
        return data

    def check(self, step: int, digest: str) -> None:
        """Raises RankFailure, on rank 0, if the ranks are not at the same step with the same weights (SHA-256 in hexadecimal)."""

    def dismiss(self) -> None:
        """By rank 0, where it ends before the last step: the others raise Dismissed."""

    def close(self) -> None:
        """The end, as planned."""


class Star(Ranks):
    """Rank 0 talks to each of the others: 8 + 24 K bytes come from each in a step of K scalars, 8 + 8 K go to it.

    Every wait ends after `timeout_seconds`, with the number of the rank that was waited for.
    """

    def __init__(self, backend: str = "gloo", timeout_seconds: float = 600) -> None:
        """By the variables that torchrun sets. The scalars lie on the CPU, where gloo takes them; nccl carries them over GPUs' links."""
        self.rank, self.size, self.backend = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), backend
        self.timeout_seconds, self.exchanges = timeout_seconds, 0
        self.device = "cuda" if backend == "nccl" else "cpu"
        self.sound = 0  # the step of the last check
        self._leaving: list[
            tuple[dist.Work, Tensor]
        ] = []  # sent to rank 0, which may not have asked for it yet
        try:
            _join(backend, self.rank, self.size, timedelta(seconds=timeout_seconds))
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RankFailure(
                f"rank {self.rank} found no {self.size} ranks at {where} ({_first_line(error)}): start them together, by torchrun"
            ) from error

    def terms(self, values: Tensor) -> list[list[float]]:
        columns = values.T.tolist()
        self.exchanges += 1
        sums = [word for column in columns for word in words(column)]
        mine = torch.tensor([self.exchanges, *sums], dtype=torch.float64)
        if self.rank:
            self._send(mine, 0)
            return [[] for _ in columns]
        for other in range(1, self.size):
            exchange, *found = self._receive(torch.empty_like(mine), other).tolist()
            if exchange != self.exchanges:
                raise RankFailure(
                    f"rank {other} sent garbage, or the sums of another step: see to its machine and run again"
                )
            for k, column in enumerate(columns):
                column.extend(found[k * WORDS : (k + 1) * WORDS])
        return columns

    def agreed(self, scalars: Sequence[float]) -> list[float]:
        return np.frombuffer(self.shared(np.asarray(scalars, "<f8").tobytes()), "<f8").tolist()

    def shared(self, data: bytes) -> bytes:
        if self.rank:
            size = int(self._receive(torch.zeros(1, dtype=torch.int64), 0))
            if size == END:
                raise Dismissed
            self._finish_sending()  # rank 0 answers what it has taken
            return bytes(self._receive(torch.empty(size, dtype=torch.uint8), 0).numpy()) if size else b""
        for other in range(1, self.size):
            self._send(torch.tensor([len(data)]), other)
            if data:
                self._send(_tensor(data), other)
        return data

    def check(self, step: int, digest: str) -> None:
        mine = _tensor(step.to_bytes(8, "little") + bytes.fromhex(digest))
        if self.rank:
            return self._send(mine, 0)
        found = {r: self._receive(torch.empty_like(mine), r) for r in range(1, self.size)}
        if wrong := [str(r) for r, theirs in found.items() if not torch.equal(theirs, mine)]:
            failure = RankFailure(
                f"the weights of rank {', '.join(wrong)} are not those of rank 0 after step {step}, as they were after step {self.sound}: "
                "see to its machine and run again"
            )
            failure.sound = self.sound
            raise failure
        self.sound = step

    def dismiss(self) -> None:
        for other in range(1, self.size):
            with suppress(RankFailure):  # it may have left
                self._send(torch.tensor([END]), other)

    def close(self) -> None:
        self._finish_sending()
        dist.destroy_process_group()

    def _send(self, tensor: Tensor, to: int) -> None:
        """A rank does not wait for rank 0 to take it: rank 0 may have an END for it."""
        self.sent_bytes += tensor.nbytes
        tensor = tensor.to(self.device)
        with self._naming(to):
            work = dist.isend(tensor, to)
            if self.rank == 0:
                work.wait()
            else:
                self._leaving.append((work, tensor))

    def _receive(self, tensor: Tensor, sender: int) -> Tensor:
        tensor = tensor.to(self.device)
        with self._naming(sender):
            dist.recv(tensor, sender)
        self.received_bytes += tensor.nbytes
        return tensor.cpu()

    def _finish_sending(self) -> None:
        with self._naming(0):
            for work, _ in self._leaving:
                work.wait()
        self._leaving.clear()

    @contextmanager
    def _naming(self, other: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            words = _first_line(error)
            late = f"did not answer within {self.timeout_seconds:g} s"
            raise RankFailure(
                f"rank {other} {late if 'imed out' in words else f'is gone ({words})'}: run again, with any number of ranks, and the run "
                "goes on from its transcript"
            ) from error


def joined(backend: str = "gloo", timeout_seconds: float = 600) -> Ranks:
    """The ranks of this process: several under torchrun, else itself."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ
    return Star(backend, timeout_seconds) if several else Ranks()


def _join(backend: str, rank: int, size: int, timeout: timedelta) -> None:
    """torchrun keeps one store over its restarts, in which addresses of ranks that are gone would be found."""
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    store.set_timeout(timeout)
    start = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=start, rank=rank, world_size=size, timeout=timeout)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split("] ", 1)[-1].split(". This is typically", 1)[0]
