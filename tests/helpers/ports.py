"""Ports for programs that must be told one."""

import random
import socket
from pathlib import Path


def free_port() -> str:
    """A port below those that the system gives to whoever asks for any, so that no other test gets it meanwhile."""
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    for port in random.SystemRandom().sample(range(int(first) // 2, int(first)), 100):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                return str(port)
            except OSError:
                continue
    raise AssertionError("100 ports are all taken")
