"""Lines of JSON between the first of several hosts and each of the others.

Hosts that compute together wait for each other, so one that has ended leaves the others waiting.
The channel ends them: a host whose connection closes, or that says why it fails, ends all. The
operating system closes the connection of a process that dies, however it dies, and notices within
half a minute that a machine is gone.

Hosts are counted from 0. Values travel in both directions, in the order in which they are sent.
"""

import contextlib
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, final

from errors import HostsError

_RETRY = 0.1  # seconds between two tries to reach the first host
_HELLO = 10.0  # seconds in which a new connection must say who it is
_CUT_OFF = "was killed or cut off; run the same command on all hosts again to continue"


@final
class Channel:
    """The connections of this host: the first has one to each other, these have one to the first.

    Args:
        index: the number of this host.
        peers: the connections, by the number of the other host.
        left: bytes that have come on them already.
    """

    def __init__(
        self, index: int, peers: dict[int, socket.socket], left: dict[int, bytes] | None = None
    ) -> None:
        self.index = index
        self._peers, self._buffers = peers, dict.fromkeys(peers, b"") | (left or {})
        self._inbox = {peer: queue.SimpleQueue() for peer in peers}
        self._sending, self._closed = threading.Lock(), False
        self._ending = threading.Lock()  # taken once, by the reason that ends this process
        self._finished: set[int] = set()
        self._selector = selectors.DefaultSelector()
        for peer, connection in peers.items():
            connection.settimeout(None)
            _keep_alive(connection)
            self._selector.register(connection, selectors.EVENT_READ, peer)
        threading.Thread(target=self._listen, daemon=True, name="hosts").start()

    @property
    def peers(self) -> list[int]:
        """The numbers of the hosts that this one is connected to."""
        return sorted(self._peers)

    def send(self, value: Any) -> None:
        """Send a value of JSON types to all hosts that this one is connected to."""
        self._send({"value": value})

    def receive(self, peer: int = 0) -> Any:
        """Return the next value of a host, when it has come."""
        while True:
            with contextlib.suppress(queue.Empty):  # in between, Ctrl-C is noticed
                return self._inbox[peer].get(timeout=1.0)

    def fail(self, reason: str) -> None:
        """End the other hosts, because this one fails; only its caller prints the reason then.

        If another host has just ended this one, the process ends here instead.
        """
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        self._send({"fails": reason})

    def close(self) -> None:
        """Part from hosts that have all finished."""
        self._closed = True
        self._send({"finished": True})
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for connection in self._peers.values():
                # What cannot be sent to a host that has ended is not missed.
                with contextlib.suppress(OSError):
                    connection.sendall(line)

    def _listen(self) -> None:
        """Read what comes, until this process ends."""
        for peer in self._peers:
            self._take(peer, b"")  # what came with the first line may be a whole message
        while self._selector.get_map():
            for key, _ in self._selector.select():
                peer, connection = key.data, self._peers[key.data]
                try:
                    data = connection.recv(1 << 16)
                except OSError:
                    data = b""
                if data:
                    self._take(peer, data)
                    continue
                self._selector.unregister(connection)
                connection.close()
                if peer not in self._finished and not self._closed:
                    self._end(f"host {peer} {_CUT_OFF}", prints=True)

    def _take(self, peer: int, data: bytes) -> None:
        *lines, self._buffers[peer] = (self._buffers[peer] + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "value" in message:
                self._inbox[peer].put(message["value"])
            elif "fails" in message:
                self._end(f"host {peer} has failed: {message['fails']}", prints=self.index == 0)
            else:
                self._finished.add(peer)

    def _end(self, reason: str, *, prints: bool) -> None:
        """End this process because of another host.

        The main thread cannot, because it may be waiting within a computation.
        """
        if not self._ending.acquire(blocking=False):  # for a reason of its own, which it prints
            return
        if self.index == 0:
            self._send({"fails": reason})
        if prints:
            print(f"\nerror: {reason}", file=sys.stderr, flush=True)
        os._exit(1)


def open_first(port: int, count: int, *, timeout: float) -> Channel:
    """Return the channel of the first host, when all others have come.

    Args:
        port: where to listen, on all addresses of this machine.
        count: number of hosts.
        timeout: seconds in which they must come.

    Raises:
        HostsError: if the port is in use, a host does not come, or two do not fit together.
    """
    with listener(port) as server:
        return accept(server, count, timeout=timeout)


def listener(port: int) -> socket.socket:
    """Return a socket that listens; port 0 is a free one.

    Raises:
        HostsError: if the port is in use.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=512)
    except OSError as error:
        raise HostsError(
            f"the first host cannot listen on port {port} ({error.strerror}); give another port in "
            "--coordinator, the same on all hosts"
        ) from error


def accept(server: socket.socket, count: int, *, timeout: float, token: str = "") -> Channel:
    """Return the channel of the first host, as `open_first`."""
    deadline, peers, left = time.monotonic() + timeout, {}, {}
    try:
        while len(peers) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            connection, _ = server.accept()
            hello, rest = _read_hello(connection)
            if hello is None or hello.get("token") != token:
                connection.close()  # of something else on the network
                continue
            index = hello["index"]
            problem = ""
            if hello["count"] != count:
                problem = f"--num_processes={count} on host 0, {hello['count']} on host {index}"
            elif index in peers:
                problem = f"two hosts have --process_id={index}"
            peers[len(peers) + count if problem else index] = connection
            left[index] = rest
            if problem:
                raise HostsError(f"{problem}; count the hosts once, from 0 to {count - 1}")
        for connection in peers.values():
            connection.sendall(b'{"welcome": true}\n')
    except (HostsError, OSError) as error:
        missing = ", ".join(str(index) for index in range(1, count) if index not in peers)
        reason = f"host {missing} has not come within {timeout:g} s"
        if not isinstance(error, TimeoutError):
            reason = str(error)
        for connection in peers.values():
            with contextlib.suppress(OSError), connection:
                connection.sendall(json.dumps({"fails": reason}).encode() + b"\n")
        if isinstance(error, HostsError):
            raise
        raise HostsError(
            f"{reason}; start the same command with --process_id={missing} there, or give a longer "
            "--hosts_timeout"
        ) from error
    return Channel(0, peers, left)


def open_other(
    addresses: Sequence[tuple[str, int]],
    index: int,
    count: int,
    *,
    timeout: float,
    token: str = "",
) -> Channel:
    """Return the channel of another host, when all have come.

    Args:
        addresses: where the first host may be; each is tried.
        index: the number of this host.
        count: number of hosts.
        timeout: seconds in which the first host must be there, and then in which all others must.
        token: what the first host expects.

    Raises:
        HostsError: if the first host is not there, or does not want this one.
    """
    connection = _connect(addresses, timeout)
    hello = {"index": index, "count": count, "token": token}
    try:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        connection.settimeout(timeout + _HELLO)
        welcome, rest = _read_line(connection)
    except OSError:
        welcome, rest = None, b""
    if not welcome or "welcome" not in welcome:
        connection.close()
        reason = (welcome or {}).get("fails", "it closes the connection")
        raise HostsError(f"the first host does not start: {reason}")
    return Channel(index, {0: connection}, {0: rest})


def _connect(addresses: Sequence[tuple[str, int]], timeout: float) -> socket.socket:
    deadline, problem = time.monotonic() + timeout, "no answer"
    while True:
        for address in addresses:
            try:
                return socket.create_connection(address, timeout=min(timeout, 5.0))
            except OSError as error:
                problem = error.strerror or str(error)
        if time.monotonic() > deadline:
            host, port = addresses[0]
            raise HostsError(
                f"the first host is not at {host}:{port} ({problem}) after {timeout:g} s; start "
                "the same command with --process_id=0 there, or correct --coordinator"
            )
        time.sleep(_RETRY)


def _read_hello(connection: socket.socket) -> tuple[dict[str, Any] | None, bytes]:
    connection.settimeout(_HELLO)
    try:
        hello, rest = _read_line(connection)
    except OSError:
        return None, b""
    known = isinstance(hello, dict) and {"index", "count", "token"} <= hello.keys()
    return (hello, rest) if known else (None, b"")


def _read_line(connection: socket.socket) -> tuple[Any, bytes]:
    """Return the first line, None if it is not JSON or does not come, and what came behind it."""
    data = b""
    while b"\n" not in data:
        more = connection.recv(4096)
        if not more or len(data) > 1 << 16:
            return None, b""
        data += more
    line, _, rest = data.partition(b"\n")
    try:
        return json.loads(line), rest
    except ValueError:
        return None, b""


def _keep_alive(connection: socket.socket) -> None:
    """Let the operating system notice within half a minute that the other machine is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
