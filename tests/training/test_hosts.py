"""Several hosts decide together; one host decides alone. Processes are in test_several_hosts.py."""

import pytest

from errors import ConfigError, HostsError, WorkdirError
from training import hosts
from training.hosts import HostOptions, agreed, require_same, wait_for_all


class Recorded:
    """A channel that records what is sent, and gives what other hosts are to send."""

    def __init__(self, index, values=()):
        self.index, self.sent, self.values = index, [], list(values)
        self.peers = [1, 2] if index == 0 else [0]

    def send(self, value):
        self.sent.append(value)

    def receive(self, peer=0):
        return self.values.pop(0)


@pytest.fixture
def channel(monkeypatch):
    def put(*arguments):
        made = Recorded(*arguments)
        monkeypatch.setattr(hosts, "_channel", made)
        return made

    return put


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"coordinator": "a:1"}, "belong together; give all three"),
        ({"num_processes": 2, "process_id": 0}, "belong together"),
        ({"num_processes": 2}, "belong together"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"--process_id=2 must lie in 0..1 for --num_processes=2",
        ),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:0", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"timeout": 0.0}, "--hosts_timeout=0 must be above 0 and finite"),
        ({"timeout": float("nan")}, "--hosts_timeout=nan must be above 0 and finite"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(given, problem):
    with pytest.raises(HostsError, match=problem):
        HostOptions(**given)


def test_addresses_of_both_kinds_are_read():
    given = {"num_processes": 2, "process_id": 1}
    assert HostOptions(coordinator="node-1:1234", **given).address == ("node-1", 1234)
    assert HostOptions(coordinator="[fe80::1]:1234", **given).address == ("fe80::1", 1234)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "a1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # in a batch script, outside of srun
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_clusters_with_several_tasks_are_joined(monkeypatch, environment, found):
    monkeypatch.setattr(hosts.os, "environ", {"JAX_PLATFORMS": "cpu"} | environment)
    assert hosts._is_cluster() == found


def test_open_mpi_that_jax_does_not_know_has_a_remedy(monkeypatch):
    monkeypatch.setattr(hosts.os, "environ", {"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(HostsError, match=r"--process_id=\$OMPI_COMM_WORLD_RANK"):
        hosts._is_cluster()


def test_one_host_decides_alone():
    assert agreed(lambda: (1, "a")) == (1, "a")
    with pytest.raises(WorkdirError):
        agreed(lambda: (_ for _ in ()).throw(WorkdirError("no")))
    require_same("the command", {"a": 1})
    wait_for_all("here")
    assert hosts.leads()


def test_first_host_decides_for_all(channel):
    first = channel(0)
    assert agreed(lambda: agreed(lambda: 3) + 1) == 4, "a decision within one is made once"
    with pytest.raises(ConfigError, match="bad"):
        agreed(lambda: (_ for _ in ()).throw(ConfigError("bad")))
    assert first.sent == [{"value": 4}, {"error": "ConfigError", "message": "bad"}]
    channel(1, first.sent)
    assert agreed(lambda: pytest.fail("decides on the first host alone")) == 4
    with pytest.raises(ConfigError, match="bad"):
        agreed(lambda: pytest.fail("decides on the first host alone"))


def test_field_in_which_a_host_differs_is_named_with_both_values(channel):
    ours, theirs = {"a": (1, 2), "b": 3}, {"a": [1, 2], "b": 4}
    same = {"a": [1, 2], "b": 3}
    first = channel(0, [{"place": "files", "value": each} for each in (same, theirs)])
    with pytest.raises(HostsError, match=r"differ in files: b is 3 on host 0, 4 on host 2; start"):
        require_same("files", ours)
    other = channel(2, first.sent)
    with pytest.raises(HostsError, match="b is 3 on host 0, 4 on host 2"):
        require_same("files", theirs)
    assert other.sent == [{"place": "files", "value": theirs}]


def test_host_at_another_place_is_named(channel):
    channel(0, [{"place": "the end", "value": None}])
    with pytest.raises(HostsError, match="host 1 is at 'the end' where host 0 is at 'the data'"):
        require_same("the data", {})
