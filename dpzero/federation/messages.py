"""What server and clients send each other, little-endian."""

from __future__ import annotations

import struct
from socket import socket

HELLO = struct.Struct("<II")  # number of the client, bytes of the transcript that it has
ASK = struct.Struct("<II")  # step, bytes of the transcript that follow
ANSWER = struct.Struct("<Iq")  # step, term of the sum
END = 2**32 - 1  # in place of a step: the last rows follow


def receive(connection: socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises ConnectionError if the other side is gone."""
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError(f"the connection was closed after {len(data)} of {size} bytes")
        data += part
    return bytes(data)
