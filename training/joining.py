"""How the hosts of a command find each other: by flags, or as JAX detects them on a cluster."""

import contextlib
import json
import math
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from errors import HostsError
from training import host_channel
from training.host_channel import Channel

_HEARTBEAT = 40  # seconds, after which JAX ends the hosts of one that hangs
_ADDRESS = 512  # bytes


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


def join(options: HostOptions) -> Channel | None:
    """Return the channel to the other hosts; None if there are none."""
    if options.num_processes is not None:
        return _join_given(options) if options.num_processes > 1 else None
    if not _is_cluster():
        return None
    with _one_line():
        found = _detect(options.timeout)
        if found is None:
            return _join_by_jax(options.timeout)
        if found.options is None:
            return None
        return _join_found(found.options, found.local_device_ids)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors on a cluster into one line with a remedy."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise HostsError(
            f"the hosts of this cluster cannot be found ({' '.join(str(error).split()):.200}); "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I, or "
            "--num_processes=1 for this host alone"
        ) from error


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


class _Found(NamedTuple):
    """What a cluster says: where the hosts meet, None for one alone; the devices of this one."""

    options: HostOptions | None
    local_device_ids: Sequence[int] | None


def _detect(timeout: float) -> _Found | None:
    """Return what JAX detects, without starting JAX; None where this JAX cannot be asked.

    Raises:
        OSError, RuntimeError: if the cluster does not answer.
        HostsError: if it does not say where the first host is.
    """
    try:
        from jax._src.clusters import ClusterEnv

        address, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, math.ceil(timeout)
        )
    except (ImportError, AttributeError, TypeError, ValueError):  # an internal of JAX, which moved
        return None
    if address is None or count is None or index is None or count == 1:
        return _Found(None, None)
    options = HostOptions(
        coordinator=address, num_processes=count, process_id=index, timeout=timeout
    )
    # Whoever starts the command has the last word.
    return _Found(options, None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else local)


def _join_found(options: HostOptions, local_device_ids: Sequence[int] | None) -> Channel:
    try:
        channel = _join_given(options, local_device_ids)
    except HostsError as error:
        raise HostsError(
            f"{error} (this is host {options.process_id} of {options.num_processes} with the "
            f"coordinator {options.coordinator}, as the cluster says)"
        ) from error
    if jax.default_backend() == "tpu":  # it numbers the hosts by their chips
        channel.close()
        channel = _join_detected(options.timeout)
    return channel


def _join_given(options: HostOptions, local_device_ids: Sequence[int] | None = None) -> Channel:
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
        local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(timeout),
        heartbeat_timeout_seconds=_HEARTBEAT,
    )
    return channel


def _join_by_jax(timeout: float) -> Channel | None:
    """Return the channel of hosts that only JAX can find; it ends the process if one is missing."""
    try:
        jax.distributed.initialize(
            initialization_timeout=math.ceil(timeout), heartbeat_timeout_seconds=_HEARTBEAT
        )
    except ValueError:  # JAX detects no cluster
        return None
    return _join_detected(timeout) if jax.process_count() > 1 else None


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
