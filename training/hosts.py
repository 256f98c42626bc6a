"""Several hosts that run one command together: how they meet, decide, and end.

All hosts compute the same. What only one can decide, such as whether a file is there, the first
decides for all (`agreed`). It alone prints and writes; `files.writing` writes nothing on the
others. When a host fails or is killed, the others end too (`training.host_channel`).

A program on one host uses none of this: `agreed` then calls what it is given.
"""

import atexit
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from absl import logging
from jax.experimental import multihost_utils
from tqdm import tqdm

import errors
from errors import HostsError, ScoreSDEError
from files import writing
from training.host_channel import Channel
from training.joining import HostOptions, join

Value = TypeVar("Value")

_GRACE = 5.0  # seconds in which the reason of a broken connection becomes known
# Words in the errors of computations that have lost another host.
_LOST = ("gloo", "nccl", "connection", "coordination service", "heartbeat", "peer")

_channel: Channel | None = None
_deciding = False  # within `agreed` on the first host


@contextlib.contextmanager
def together(options: HostOptions) -> Iterator[None]:
    """Meet the other hosts, if there are any, and end with them.

    Leaves only when all hosts do. An error of one ends all.

    Raises:
        HostsError: if the hosts do not meet, or lose each other.
    """
    global _channel
    _channel = join(options)
    if _channel is None:
        yield
        return
    if _channel.index:
        _be_silent()
    try:
        # Connects the devices now, since later one host may be half a minute behind another.
        multihost_utils.sync_global_devices("the start")
        yield
        _part(_channel)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            _part(_channel)  # with a status that all have
        else:
            _end_others(_channel, str(end.code).removeprefix("error: "))
        raise
    except BaseException as error:
        shown = _explained(error)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        _end_others(_channel, str(shown) or type(shown).__name__, status)
        if shown is error:
            raise
        raise shown from error


def _explained(error: BaseException) -> BaseException:
    """Return the error, or if it comes from the loss of another host, one that says so."""
    if not isinstance(error, ScoreSDEError | OSError | MemoryError | KeyboardInterrupt):
        text = " ".join(str(error).split())
        if any(word in text.lower() for word in _LOST):
            time.sleep(_GRACE)  # the channel ends this process if it knows why
            error = HostsError(f"another host was lost ({text[:200]}); run the command again")
    return error


def _end_others(channel: Channel, reason: str, status: int = 1) -> None:
    """End the other hosts for a reason, and this process as soon as it has printed it."""
    channel.fail(" ".join(reason.split()))

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # comes before JAX's own, which would wait for the others


def _part(channel: Channel) -> None:
    """Wait for all hosts, and close what connects them."""
    global _channel
    wait_for_all("the end")
    channel.close()
    _channel = None
    jax.distributed.shutdown()


def _be_silent() -> None:
    """Let this host print and write nothing, apart from errors."""
    writing.write_nothing()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print there too
    logging.set_verbosity(logging.ERROR)
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # pyright: ignore


def leads() -> bool:
    """Return whether this host prints and writes."""
    return _channel is None or _channel.index == 0


def several() -> bool:
    """Return whether there are other hosts."""
    return _channel is not None


def agreed(decide: Callable[[], Value]) -> Value:
    """Return what `decide` returns on the first host, where alone it is called; on all hosts.

    All hosts must call this in the same order, from their main threads. The value is made of JSON
    types (tuples come back as lists on the others). A ScoreSDEError is raised on all of them.
    """
    global _deciding
    if _channel is None or _deciding:
        return decide()
    if _channel.index:
        found = _channel.receive()
        if "error" in found:
            raise getattr(errors, found["error"])(found["message"])
        return found["value"]
    _deciding = True
    try:
        value = decide()
    except ScoreSDEError as error:
        _channel.send({"error": type(error).__name__, "message": str(error)})
        raise
    finally:
        _deciding = False
    _channel.send({"value": value})
    return value


def _gathered(place: str, value: Any) -> dict[int, Any]:
    """Return the values of all hosts on the first, {} on the others."""
    assert _channel is not None
    if _channel.index:
        _channel.send({"place": place, "value": value})
        return {}
    found = {0: value}
    for peer in _channel.peers:
        received = _channel.receive(peer)
        if received["place"] != place:
            raise HostsError(
                f"host {peer} is at {received['place']!r} where host 0 is at {place!r}; start the "
                "same command with the same files on all hosts"
            )
        found[peer] = received["value"]
    return found


def wait_for_all(place: str) -> None:
    """Wait until all hosts are at this place; `place` names it in an error."""
    if _channel is not None and not _deciding:
        _gathered(place, None)
        agreed(lambda: None)


def require_same(what: str, fields: Mapping[str, Any]) -> None:
    """Raise HostsError on all hosts unless they have the same values of JSON types by name.

    `what` is where they come from, such as "the command".
    """
    if _channel is None or _deciding:
        return
    found = _gathered(what, json.loads(json.dumps(fields)))

    def check() -> None:
        first = found[0]
        for host, theirs in found.items():
            for name in sorted(first.keys() | theirs.keys()):
                if first.get(name) != theirs.get(name):
                    raise HostsError(
                        f"the hosts differ in {what}: {name} is {first.get(name)!r:.200} on host "
                        f"0, {theirs.get(name)!r:.200} on host {host}; start the same command with "
                        "the same files on all hosts"
                    )

    agreed(check)
