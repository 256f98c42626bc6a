"""How the hosts of a command find each other: by flags, or as JAX detects them on a cluster."""

import json
import math
import os
import secrets
import socket
from dataclasses import dataclass
from importlib.util import find_spec

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
