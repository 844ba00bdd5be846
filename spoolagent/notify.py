"""Telling systemd how a service stands (sd_notify(3): one datagram to the socket that it names)."""

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Sends `READY=1`, `STOPPING=1`, `WATCHDOG=1` or `STATUS=...`; does nothing where systemd is not asking."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(address)
        sock.sendall(message.encode())
