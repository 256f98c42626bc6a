"""Several hosts that run one command together: how they meet, decide, and end.

All hosts compute the same. What only one can decide, such as whether a file is there, the first
decides for all (`agreed`). It alone prints and writes; `files.writing` writes nothing on the
others. When a host fails or is killed, the others end too (`training.host_channel`).

A program on one host uses none of this: `agreed` then calls what it is given.
"""

import contextlib
import functools
import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from tqdm import tqdm

import errors
from errors import HostsError, ScoreSDEError
from files import writing
from training import host_channel
from training.host_channel import Channel

Value = TypeVar("Value")

_HEARTBEAT = 40  # seconds, after which JAX ends the hosts of one that hangs
_GRACE = 5.0  # seconds in which the reason of a broken connection becomes known
_ADDRESS = 512  # bytes
# Words in the errors of computations that have lost another host.
_LOST = ("gloo", "nccl", "connection", "coordination service", "heartbeat", "peer")

_channel: Channel | None = None
_deciding = False  # within `agreed` on the first host


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """Where the hosts of a command meet; by default, they are detected.

    Attributes:
        coordinator: HOST:PORT of the first host; "" if it is to be detected.
        num_processes: number of hosts; None if it is to be detected.
        process_id: number of this one, from 0.
        timeout: seconds in which all hosts must have started.

    Raises:
        HostsError: for options that do not fit together.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    timeout: float = 300.0

    def __post_init__(self) -> None:
        given = (self.coordinator, self.num_processes, self.process_id)
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise HostsError(f"--hosts_timeout={self.timeout:g} must be above 0 and finite")
        if given in (("", None, None), ("", 1, None)):
            return
        if not self.coordinator or None in given:
            raise HostsError(
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=I belong together; "
                "give all three, or none where hosts are detected (SLURM, Open MPI, TPU)"
            )
        assert self.num_processes is not None
        assert self.process_id is not None
        if not 0 <= self.process_id < self.num_processes:
            raise HostsError(
                f"--process_id={self.process_id} must lie in 0..{self.num_processes - 1} for "
                f"--num_processes={self.num_processes}"
            )
        name, _, port = self.coordinator.rpartition(":")
        if not (name and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise HostsError(
                f"--coordinator={self.coordinator} must be HOST:PORT, such as 10.0.0.1:1234"
            )

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of the coordinator."""
        name, _, port = self.coordinator.rpartition(":")
        return name.strip("[]"), int(port)


@contextlib.contextmanager
def together(options: HostOptions) -> Iterator[None]:
    """Meet the other hosts, if there are any, and end with them.

    Leaves only when all hosts do. An error of one ends all.

    Raises:
        HostsError: if the hosts do not meet, or lose each other.
    """
    global _channel
    _channel = _join(options)
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
        if not isinstance(end.code, int):
            _channel.fail(str(end.code))
            raise
        _part(_channel)  # with a status that all have
        raise
    except BaseException as error:
        raise _failed(_channel, error) from error


def _failed(channel: Channel, error: BaseException) -> BaseException:
    """End the other hosts, and return the error to raise."""
    if not isinstance(error, ScoreSDEError | OSError | MemoryError | KeyboardInterrupt):
        text = " ".join(str(error).split())
        if any(word in text.lower() for word in _LOST):
            time.sleep(_GRACE)  # the channel ends this process if it knows why
            error = HostsError(f"another host was lost ({text[:200]}); run the command again")
    channel.fail(" ".join(f"{error}".split()) or type(error).__name__)
    # Leave in time: JAX would wait for the other hosts when the interpreter ends.
    sys.stdout.flush()
    _leave_at_exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    return error


def _leave_at_exit(status: int) -> None:
    import atexit

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # before what JAX has registered


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


def _join(options: HostOptions) -> Channel | None:
    """Return the channel to the other hosts; None if there are none."""
    if options.num_processes is not None:
        return _join_given(options) if options.num_processes > 1 else None
    if not _is_cluster():
        return None
    try:
        jax.distributed.initialize(
            initialization_timeout=math.ceil(options.timeout), heartbeat_timeout_seconds=_HEARTBEAT
        )
    except ValueError:  # JAX detects no cluster
        return None
    except (OSError, RuntimeError) as error:
        raise HostsError(
            f"the hosts of this cluster cannot be found ({' '.join(str(error).split()):.200}); "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I, or "
            "--num_processes=1 for this host alone"
        ) from error
    return _join_detected(options.timeout) if jax.process_count() > 1 else None


def _is_cluster() -> bool:
    """Return whether JAX should look for other hosts.

    Not for one task of SLURM or Open MPI, since JAX would then use one GPU of several.
    """
    slurm, mpi = (int(os.environ.get(n) or 1) for n in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    if "SLURM_STEP_NODELIST" in os.environ and slurm > 1:
        return True
    if mpi > 1:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise HostsError(
                f"Open MPI has started {mpi} processes, but JAX cannot detect where the first is; "
                "give --coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
                "--process_id=$OMPI_COMM_WORLD_RANK"
            )
        return True
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return find_spec("libtpu") is not None and (not platforms or "tpu" in platforms)


def _join_given(options: HostOptions) -> Channel:
    name, port = options.address
    count, index, timeout = options.num_processes, options.process_id, options.timeout
    assert count is not None
    assert index is not None
    # They meet before JAX does, whose own errors end the process with a page.
    if index == 0:
        channel = host_channel.open_first(port, count, timeout=timeout)
    else:
        channel = host_channel.open_other([(name, port)], index, count, timeout=timeout)
    jax.distributed.initialize(
        options.coordinator,
        count,
        index,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(timeout),
        heartbeat_timeout_seconds=_HEARTBEAT,
    )
    return channel


def _join_detected(timeout: float) -> Channel:
    """Return the channel of hosts that JAX has found; the first sends its addresses through JAX."""
    index, count = jax.process_index(), jax.process_count()
    if index:
        name, address, port, token = json.loads(_broadcast(""))
        where = [(address, port), (name, port)]
        return host_channel.open_other(where, index, count, timeout=timeout, token=token)
    token = secrets.token_hex(8)
    with host_channel.listener(0) as server:
        port = server.getsockname()[1]
        _broadcast(json.dumps([socket.gethostname(), _own_address(), port, token]))
        return host_channel.accept(server, count, timeout=timeout, token=token)


def _broadcast(text: str) -> str:
    """Return the text of the first host."""
    padded = np.frombuffer(text.encode().ljust(_ADDRESS), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes().decode().strip()


def _own_address() -> str:
    """Return the address of this machine on its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing
            return probe.getsockname()[0]
        except OSError:  # no network
            return "127.0.0.1"
