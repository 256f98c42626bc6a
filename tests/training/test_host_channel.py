"""Hosts of one process: values in order, hosts that do not come, and hosts that end."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from errors import HostsError
from training import host_channel
from training.host_channel import accept, listener, open_first, open_other

HERE = "127.0.0.1"


@pytest.fixture
def ended(monkeypatch):
    """The statuses with which the channel would have ended this process."""
    statuses = []
    monkeypatch.setattr(host_channel.os, "_exit", statuses.append)
    return statuses


def free_port():
    with socket.create_server((HERE, 0)) as server:
        return server.getsockname()[1]


def channels(count):
    """The channels of all hosts."""
    with listener(0) as server, ThreadPoolExecutor() as threads:
        address = [(HERE, server.getsockname()[1])]
        others = [
            threads.submit(open_other, address, index, count, timeout=5.0)
            for index in range(1, count)
        ]
        return [accept(server, count, timeout=5.0), *(other.result() for other in others)]


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_values_come_in_their_order_from_and_to_every_host(ended):
    first, *others = channels(3)
    for number, other in enumerate(others, start=1):
        for value in (number, ["a", None], {"long": "x" * 200_000}):
            other.send(value)
    first.send("to all")
    first.send({"then": 2.5})
    for number, other in enumerate(others, start=1):
        assert [first.receive(number) for _ in range(2)] == [number, ["a", None]]
        assert len(first.receive(number)["long"]) == 200_000
        assert [other.receive() for _ in range(2)] == ["to all", {"then": 2.5}]
    assert first.peers == [1, 2]
    for channel in (first, *others):
        channel.close()
    assert not ended


def test_reason_of_a_host_ends_all_others_and_the_first_prints_it(ended, capsys):
    _first, failing, _bystander = channels(3)
    failing.fail("the disk is full")
    until(lambda: len(ended) == 2)
    assert ended == [1, 1]
    assert capsys.readouterr().err == "\nerror: host 1 has failed: the disk is full\n"


def test_host_that_is_ended_while_it_fails_prints_one_reason(ended, capsys):
    first, failing, _bystander = channels(3)
    failing.fail("the disk is full")
    until(lambda: len(ended) == 2)
    late = threading.Thread(target=first.fail, args=["its own reason"], daemon=True)
    late.start()
    late.join(0.05)
    assert late.is_alive(), "the caller would print a second line before the process ends"
    assert capsys.readouterr().err == "\nerror: host 1 has failed: the disk is full\n"


def test_connection_that_closes_ends_all(ended, capsys):
    _first, killed, _ = channels(3)
    killed._peers[0].shutdown(socket.SHUT_WR)  # as the end of its process would
    until(lambda: len(ended) == 3)  # or the last would end the process in another test
    assert "error: host 1 was killed or cut off; run the same command" in capsys.readouterr().err


def test_host_that_does_not_come_is_named():
    problem = r"host 1, 2 has not come within 0.05 s; start .* --process_id=1, 2 there, or give a"
    with pytest.raises(HostsError, match=problem):
        open_first(free_port(), 3, timeout=0.05)


@pytest.mark.slow
def test_first_host_that_is_not_there_is_named():
    port = free_port()
    with pytest.raises(HostsError, match=rf"is not at {HERE}:{port} \(.*\) after 0.3 s; start the"):
        open_other([(HERE, port)], 1, 2, timeout=0.3)


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ([(1, 3), (1, 3)], "two hosts have --process_id=1; count the hosts once, from 0 to 2"),
        ([(1, 2)], "--num_processes=3 on host 0, 2 on host 1"),
    ],
)
def test_hosts_that_are_counted_twice_or_differently_are_refused(hosts, problem):
    with listener(0) as server, ThreadPoolExecutor() as threads:
        address = [(HERE, server.getsockname()[1])]
        others = [threads.submit(open_other, address, *host, timeout=5.0) for host in hosts]
        with pytest.raises(HostsError, match=problem):
            accept(server, 3, timeout=5.0)
        for other in others:
            with pytest.raises(HostsError, match=f"the first host does not start: .*{problem}"):
                other.result()


def test_value_that_comes_in_one_packet_with_the_first_line_is_received(ended):
    hello = {"index": 1, "count": 2, "token": ""}
    packet = b"".join(json.dumps(line).encode() + b"\n" for line in (hello, {"value": 7}))
    with listener(0) as server, socket.create_connection((HERE, server.getsockname()[1])) as other:
        other.sendall(packet)
        first = accept(server, 2, timeout=5.0)
        until(lambda: not first._inbox[1].empty())
        assert first.receive(1) == 7
        first.close()


def test_strangers_on_the_port_are_left_out(ended):
    with listener(0) as server, ThreadPoolExecutor() as threads:
        address = (HERE, server.getsockname()[1])
        for text in (b"GET / HTTP/1.1\n", b'{"index": 1}\n', b"[]\n", b""):
            with socket.create_connection(address) as stranger:
                stranger.sendall(text)
        wrong = {"index": 1, "count": 2, "token": "another run"}
        with socket.create_connection(address) as stranger:
            stranger.sendall(json.dumps(wrong).encode() + b"\n")
        other = threads.submit(open_other, [address], 1, 2, timeout=5.0, token="ours")
        first = accept(server, 2, timeout=5.0, token="ours")
        first.send("hello")
        assert other.result().receive() == "hello"
        first.close()
        other.result().close()


def test_port_in_use_is_one_line():
    with listener(0) as server:
        port = server.getsockname()[1]
        with pytest.raises(HostsError, match=rf"cannot listen on port {port} .*give another port"):
            open_first(port, 2, timeout=1.0)
