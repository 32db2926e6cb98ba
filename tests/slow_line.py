"""Two network namespaces joined by a line that is slow and loses packets. Needs Linux, `ip` and the right to make namespaces."""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
ADDRESSES = ("10.77.0.1", "10.77.0.2")


@contextmanager
def line(delay_seconds: float, loss: float) -> Iterator[list[str]]:
    """The names of the two namespaces. Raises OSError where this machine does not allow them."""
    if not shutil.which("ip"):
        raise OSError("there is no command `ip` here")
    names = [f"dpzero-{os.getpid()}-{side}" for side in "ab"]
    carried = (
        multiprocessing.get_context("fork").Value("i", 0),
        multiprocessing.get_context("fork").Value("i", 0),
    )
    relay = None
    try:
        ends = [_end(name, ADDRESSES[i], ADDRESSES[1 - i]) for i, name in enumerate(names)]
        relay = multiprocessing.get_context("fork").Process(
            target=_relay, args=(ends, delay_seconds, loss, *carried)
        )
        relay.start()
        yield names
        assert carried[1].value > 0, f"none of {carried[0].value} packets was lost"
    finally:
        if relay:
            relay.kill()
            relay.join()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def enter(name: str) -> None:
    """This thread, and those that it starts, into a namespace, where gloo finds its interface."""
    with Path(f"/run/netns/{name}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ["GLOO_SOCKET_IFNAME"] = _device(name)


def _device(name: str) -> str:
    return "dpz" + name.split("-", 1)[1].replace("-", "")[-10:]


def _end(name: str, own: str, other: str) -> int:
    """A namespace with one interface, whose packets come out of the returned file descriptor."""
    device, file = _device(name), os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    for command in (
        f"netns add {name}",
        f"link set {device} netns {name}",
        f"-n {name} addr add {own} peer {other} dev {device}",
        f"-n {name} link set {device} up",
        f"-n {name} link set lo up",
    ):
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"ip {command}: {done.stderr.strip()}")
    return file


def _relay(ends: list[int], delay_seconds: float, loss: float, carried, lost) -> None:
    """Each packet from one end to the other, late, or not at all."""
    draw, waiting = random.Random(0), []
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, end, packet = heapq.heappop(waiting)
            with suppress(OSError):  # the other interface is down
                os.write(end, packet)
        left = max(0.0, waiting[0][0] - now) if waiting else None
        for end in select.select(ends, [], [], left)[0]:
            packet = os.read(end, 65536)
            carried.value += 1
            if draw.random() < loss:
                lost.value += 1
                continue
            due = time.monotonic() + delay_seconds
            heapq.heappush(waiting, (due, carried.value, ends[1 - ends.index(end)], packet))
