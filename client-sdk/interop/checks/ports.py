"""Prints a base port for `tern dev --base-port`: the ports of its first two regions are free, TCP and UDP."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 10_000, 32_000
"""Below the ports that Linux gives out by itself."""
BLOCK = 40
TRIES = 100


def is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def free_base() -> int:
    """OSError if there is none."""
    for _ in range(TRIES):
        base = random.randrange(FIRST, LAST, BLOCK)
        if all(is_free(port) for port in range(base, base + BLOCK)):
            return base
    raise OSError("found no free block of ports")


if __name__ == "__main__":
    print(free_base())
