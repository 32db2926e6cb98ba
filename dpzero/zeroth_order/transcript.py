"""The scalars by which a zeroth-order run moved: with the base model, that list is the fine-tuned model.

The file: one line of JSON (the header), then a row a step: a float64 for each direction and the learning rate
of each parameter group, little-endian, and a CRC-32 of the header and the rows so far. A row is written before
the weights move, so a killed process never moved by an unwritten scalar. A machine that loses power may lose the
last rows, but none of before a state that was saved (`sync`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .directions import make_law
from .perturbation import Perturbation, points

FORMAT = "dpzero transcript 3"
STEPS_A_PASS = 64  # steps that a replay applies in one pass over the weights
Header = dict[str, Any]


class Steps(NamedTuple):
    """What a transcript holds. `scalars` are float64 [steps, directions], `rates` float64 [steps, groups]."""

    header: Header
    scalars: np.ndarray
    rates: np.ndarray


class Transcript:
    """Appends to a file. A new file gets `header`; an existing one must have the same.

    Raises:
        ValueError: the file of another run, a damaged one, or no transcript.
    """

    def __init__(self, path: Path, header: Header) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO
        if path.exists() and path.stat().st_size:
            (self.header, self.scalars, _), end, self._checksum = _parse(path)
            if self.header != json.loads(json.dumps(header)):
                raise ValueError(
                    f"transcript {path} is of another run: remove it, or give its settings and base model"
                )
            self._file = path.open("r+b")
            self._file.truncate(end)  # a torn last row moved nothing
            self._file.seek(end)
        else:
            self._file = path.open("wb")
            self.begin(header)

    def begin(self, header: Header) -> None:
        """Writes the header of a file without rows."""
        line = json.dumps(header).encode() + b"\n"
        self.header, self.scalars = json.loads(line), np.zeros((0, header["directions"]))
        self._file.seek(0)
        self._file.truncate()
        self._file.write(line)
        self._file.flush()
        self._checksum = zlib.crc32(line)

    def __len__(self) -> int:
        """The number of rows when it was opened."""
        return len(self.scalars)

    def append(self, scalars: Sequence[float], rates: Sequence[float]) -> None:
        """Appends one row: a scalar for each direction, a learning rate for each group."""
        row = np.asarray([*scalars, *rates], "<f8").tobytes()
        self._checksum = zlib.crc32(row, self._checksum)
        self._file.write(row + struct.pack("<I", self._checksum))
        self._file.flush()

    def sync(self) -> None:
        """Waits until the rows are on disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def read(path: Path) -> Steps:
    """Reads a file, without a torn last row.

    Raises:
        ValueError: a file that is no transcript or was altered.
    """
    return _parse(path)[0]


def truncate(path: Path, steps: int) -> None:
    """Keeps only the first rows of a file."""
    (header, scalars, _), end, _ = _parse(path)
    with path.open("r+b") as file:
        file.truncate(end - (len(scalars) - min(steps, len(scalars))) * _row(header).itemsize)


def _parse(path: Path) -> tuple[Steps, int, int]:
    """The steps, the position after the last complete row, and the checksum there."""
    data = path.read_bytes()
    try:
        line = data[: data.index(b"\n") + 1]
        header: Header = json.loads(line)
        row = _row(header) if header["format"] == FORMAT else np.dtype("u1")
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no transcript: give the file that a run wrote beside its record"
        ) from None
    if header["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {header['format']!r}: this version reads {FORMAT!r}, so replay it with the version "
            "that wrote it"
        )
    complete = data[len(line) : len(data) - (len(data) - len(line)) % row.itemsize]
    try:
        steps, checksum = parse_rows(header, complete, zlib.crc32(line))
    except ValueError as error:
        raise ValueError(f"transcript {path} is damaged {error}: its checksum does not fit") from None
    return steps, len(line) + len(complete), checksum


def parse_rows(header: Header, data: bytes, checksum: int, first: int = 0) -> tuple[Steps, int]:
    """Complete rows that follow the bytes with this checksum, as steps, and the checksum after them.

    Args:
        first: the step of the first row, for the message.

    Raises:
        ValueError: a row whose checksum does not fit, by its place in the transcript.
    """
    rows = np.frombuffer(data, _row(header))
    for step, (row, expected) in enumerate(
        zip(rows["numbers"], rows["checksum"].tolist(), strict=True), first
    ):
        checksum = zlib.crc32(row.tobytes(), checksum)
        if checksum != expected:
            raise ValueError(f"{'in its first line or ' if step == 0 else ''}in the row of step {step}")
    numbers = rows["numbers"].astype(np.float64)
    return Steps(header, numbers[:, : header["directions"]], numbers[:, header["directions"] :]), checksum


def _row(header: Header) -> np.dtype[Any]:
    """A row's fields in the file: scalars and learning rates, then the checksum."""
    numbers = header["directions"] + len(header["groups"])
    return np.dtype([("numbers", "<f8", (numbers,)), ("checksum", "<u4")])


def digest(parameters: Sequence[Tensor]) -> str:
    """SHA-256 of tensors: types, shapes and bytes."""
    sha = hashlib.sha256()
    for p in parameters:
        sha.update(f"{p.dtype} {tuple(p.shape)}\n".encode())
        sha.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


class SecondMoment:
    """Scales the scalars of a step by Adam's bias-corrected second moment of the scalars so far.

    This optimizer state follows from the transcript alone. A decay of 0 leaves the scalars as they are.

    Args:
        decay: of the moment.
        scalars: of the steps so far, a row each.
        noise: 0 divides by the root of the moment. Otherwise the standard deviation of the noise in a scalar, and
            the scalars are multiplied by the part of the moment that is not noise (James and Stein 1961).
        floor: 0, or the least share of the moment that is left where its part that is noise is taken out; the
            scalars are then divided by the root of the rest.
    """

    def __init__(
        self, decay: float, scalars: Iterable[Sequence[float]] = (), noise: float = 0.0, floor: float = 0.0
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"second_moment is {decay}: it must be at least 0 and below 1")
        self.decay, self.noise, self.floor, self.mean, self.steps = decay, noise, floor, 0.0, 0
        for row in scalars:
            self.scaled(row)

    @classmethod
    def of_header(cls, header: Mapping[str, Any], scalars: Iterable[Sequence[float]] = ()) -> SecondMoment:
        """The moment of a transcript with this header, after these scalars."""
        return cls(
            header["second_moment"], scalars, header.get("noise", 0.0), header.get("moment_floor", 0.0)
        )

    def header(self) -> dict[str, float]:
        """What a transcript says of it."""
        more = {"noise": self.noise, "moment_floor": self.floor}
        return {"second_moment": self.decay} | {name: value for name, value in more.items() if value}

    def scaled(self, gradients: Sequence[float]) -> list[float]:
        """The scalars of the next step, scaled."""
        if self.decay == 0:
            return list(gradients)
        square = math.fsum(g * g for g in gradients) / len(gradients)
        self.mean, self.steps = self.decay * self.mean + (1 - self.decay) * square, self.steps + 1
        moment = self.mean / (1 - self.decay**self.steps)
        if self.noise and not self.floor:
            signal = max(0.0, 1 - self.noise**2 / moment) if moment else 0.0
            return [g * signal for g in gradients]
        size = math.sqrt(max(moment - self.noise**2, self.floor * moment))
        return [g / size if size else 0.0 for g in gradients]


@torch.no_grad()
def replay(
    parameters: Iterable[Tensor] | nn.Module,
    path: str | Path,
    start: int = 0,
    perturbation: Perturbation | None = None,
    end: int | None = None,
) -> int:
    """In place: moves the base model's trained tensors as the run did, to the bit.

    Args:
        parameters: in the order of the model, or the model, of which those with `requires_grad` are moved.
        path: of the transcript.
        start: steps that were already taken.
        perturbation: of these parameters, if it exists.
        end: steps to have taken; all by default.

    Returns:
        The number of steps taken.

    Raises:
        ValueError: a damaged file, or tensors that are not those of the base model.
    """
    if isinstance(parameters, nn.Module):
        parameters = [p for p in parameters.parameters() if p.requires_grad]
    path, parameters = Path(path), list(parameters)
    header, scalars, rates = read(path)
    if start == 0 and digest(parameters) != header["base_sha256"]:
        raise ValueError(
            f"these tensors are not those that the run of {path} started from: give its base model, unchanged"
        )
    law = header["law"]
    if perturbation is None:
        directions = make_law(law["name"], law["seed"], law["rank"])
        fixed_rows = dict(header.get("still", []))
        on_read, groups = header["perturbed_on_read"], header["groups"]
        perturbation = Perturbation(parameters, directions, on_read, fixed_rows, groups=groups)
    if perturbation.law.law != law["version"]:
        raise ValueError(
            f"{path} was written with directions {law['version']}, here is {perturbation.law.law}"
        )
    moment = SecondMoment.of_header(header, scalars[:start].tolist())
    visited = list(points(header["directions"], header["smoothing"], header.get("one_sided", False)))
    end = len(scalars) if end is None else min(end, len(scalars))
    for step in range(start, end):
        for k, _, scale in visited:
            perturbation.plan_point(step, k, scale)
        perturbation.plan_update(step, moment.scaled(scalars[step].tolist()), (-rates[step]).tolist())
        if (step + 1 - start) % STEPS_A_PASS == 0:
            perturbation.apply()
    perturbation.apply()
    return end
