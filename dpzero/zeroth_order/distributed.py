"""One run on several processes (ranks): each evaluates its share of a batch, and only scalars are exchanged.

Rank 0 gathers the sums, turns them into the step's scalars, writes these to the transcript and sends them
out. All ranks then move by the same scalars along the same directions. A sum is rounded once, at the end, so
it does not depend on the division of the batch: any number of ranks takes the same steps to the bit, and a
run that lost a rank resumes with fewer.
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

WORDS = 3  # float64 numbers that represent a sum: its leading 159 bits
CHECK_EVERY = 100  # steps between comparisons of weights, each of which reads all of them
END = -1  # in place of a message's size: no message will follow


def exact_sum(terms: Sequence[float]) -> float:
    """The sum, rounded once; NaN if infinite terms cancel."""
    try:
        return math.fsum(terms)
    except (ValueError, OverflowError):
        return math.nan


def words(terms: Sequence[float]) -> list[float]:
    """WORDS numbers with the sum of the terms, each the remainder that the previous ones leave."""
    result: list[float] = []
    for _ in range(WORDS):
        finite = all(map(math.isfinite, result))
        result.append(exact_sum([*terms, *(-word for word in result)]) if finite else 0.0)
    return result


class Dismissed(Exception):
    """Raised on the other ranks when rank 0 has ended the run."""


class Ranks:
    """The ranks of a run, joined by `join_ranks`. A single process, by default, exchanges nothing.

    Rank 0 receives 8 + 24 K bytes from each other rank in a step of K scalars, and sends 8 + 8 K to it.

    Raises:
        RankFailure: a rank that does not answer within `timeout_seconds`, by its number.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, backend: str | None = None, timeout_seconds: float = 600
    ) -> None:
        self.rank, self.size, self.backend, self.timeout_seconds = rank, size, backend, timeout_seconds
        self.device = "cuda" if backend == "nccl" else "cpu"
        self.exchanges = 0
        self.sent_bytes = self.received_bytes = 0  # by this rank, without the overhead of the transport
        self.sound = 0  # the step of the last check
        self._pending: list[tuple[dist.Work | None, Tensor]] = []  # perhaps not yet received by rank 0

    def terms(self, values: Tensor) -> list[list[float]]:
        """float64 [n, K] of this rank -> on rank 0, for each column, numbers whose exact sum is that of all ranks.

        The other ranks get empty lists, and then their scalars from `agreed`.
        """
        columns: list[list[float]] = values.T.tolist()
        if self.size == 1:
            return columns
        self.exchanges += 1
        sums = [word for column in columns for word in words(column)]
        mine = torch.tensor([self.exchanges, *sums], dtype=torch.float64)
        if self.rank:
            self._send(mine, 0)
            return [[] for _ in columns]
        for other in range(1, self.size):
            exchange, *theirs = self._receive(torch.empty_like(mine), other).tolist()
            if exchange != self.exchanges:
                raise RankFailure(
                    f"rank {other} sent corrupt sums, or those of another step: check its host and run again"
                )
            for k, column in enumerate(columns):
                column.extend(theirs[k * WORDS : (k + 1) * WORDS])
        return columns

    def agreed(self, scalars: Sequence[float]) -> list[float]:
        """The scalars of rank 0."""
        if self.size == 1:
            return list(scalars)
        agreed: list[float] = np.frombuffer(self.shared(np.asarray(scalars, "<f8").tobytes()), "<f8").tolist()
        return agreed

    def shared(self, data: bytes) -> bytes:
        """The bytes of rank 0."""
        if self.rank:
            size = int(self._receive(torch.zeros(1, dtype=torch.int64), 0))
            if size == END:
                raise Dismissed
            self._finish_sending()  # rank 0 answers after it has received
            return bytes(self._receive(torch.empty(size, dtype=torch.uint8), 0).numpy()) if size else b""
        for other in range(1, self.size):
            self._send(torch.tensor([len(data)]), other)
            if data:
                self._send(_tensor(data), other)
        return data

    def check(self, step: int, digest: str) -> None:
        """Raises RankFailure, on rank 0, if a rank is at another step or has weights of another SHA-256."""
        mine = _tensor(step.to_bytes(8, "little") + bytes.fromhex(digest))
        if self.rank:
            return self._send(mine, 0)
        received = {r: self._receive(torch.empty_like(mine), r) for r in range(1, self.size)}
        if wrong := [str(r) for r, theirs in received.items() if not torch.equal(theirs, mine)]:
            failure = RankFailure(
                f"the weights of rank {', '.join(wrong)} are not those of rank 0 after step {step}, as they were after "
                f"step {self.sound}: check its host and run again"
            )
            failure.sound = self.sound
            raise failure
        self.sound = step

    def dismiss(self) -> None:
        """Called by rank 0 if it ends before the last step: the others raise Dismissed."""
        for other in range(1, self.size):
            with suppress(RankFailure):  # it may have left
                self._send(torch.tensor([END]), other)

    def close(self) -> None:
        """Ends the exchange after the last step."""
        self._finish_sending()
        if self.size > 1:
            dist.destroy_process_group()

    def _send(self, tensor: Tensor, to: int) -> None:
        """Rank 0 waits until the tensor is received. The others do not: rank 0 may send them an END."""
        self.sent_bytes += tensor.nbytes
        tensor = tensor.to(self.device)
        with self._naming(to):
            work = dist.isend(tensor, to)
            if self.rank == 0 and work is not None:
                work.wait()
            else:
                self._pending.append((work, tensor))

    def _receive(self, tensor: Tensor, sender: int) -> Tensor:
        tensor = tensor.to(self.device)
        with self._naming(sender):
            dist.recv(tensor, sender)
        self.received_bytes += tensor.nbytes
        return tensor.cpu()

    def _finish_sending(self) -> None:
        with self._naming(0):
            for work, _ in self._pending:
                if work is not None:
                    work.wait()
        self._pending.clear()

    @contextmanager
    def _naming(self, other: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            cause = _first_line(error)
            late = f"did not answer within {self.timeout_seconds:g} s"
            raise RankFailure(
                f"rank {other} {late if 'imed out' in cause else f'is gone ({cause})'}: run again, with any number of "
                "ranks, and the run goes on from its transcript"
            ) from error


def join_ranks(backend: str = "gloo", timeout_seconds: float = 600) -> Ranks:
    """The ranks of this process: several under torchrun, by the variables that it sets, else itself alone.

    Uses a store for each restart: torchrun keeps one over restarts, with addresses of ranks that are gone.

    Args:
        backend: scalars are on the CPU for gloo, on the GPU for nccl.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if size == 1:
        return Ranks()
    rank, timeout = int(os.environ["RANK"]), timedelta(seconds=timeout_seconds)
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined, unused-ignore]
        store.set_timeout(timeout)
        start = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        store = dist.PrefixStore(start, store)  # type: ignore[attr-defined, unused-ignore]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RankFailure(
            f"rank {rank} found no {size} ranks at {where} ({_first_line(error)}): start them together, by torchrun"
        ) from error
    return Ranks(rank, size, backend, timeout_seconds)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split("] ", 1)[-1].split(". This is typically", 1)[0]
