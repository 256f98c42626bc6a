"""Where hosts meet: by options that belong together, or on clusters that JAX detects."""

import pytest

from errors import HostsError
from training import joining
from training.joining import HostOptions


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
    monkeypatch.setattr(joining.os, "environ", {"JAX_PLATFORMS": "cpu"} | environment)
    assert joining._is_cluster() == found


@pytest.mark.parametrize(
    ("platforms", "library", "found"),
    [
        ("", "libtpu", True),
        ("tpu,cpu", "libtpu", True),
        ("cpu", "libtpu", False),  # on a TPU's machine, but not on the TPU
        ("", None, False),
    ],
)
def test_hosts_of_a_tpu_pod_are_joined(monkeypatch, platforms, library, found):
    monkeypatch.setattr(joining.os, "environ", {"JAX_PLATFORMS": platforms})
    monkeypatch.setattr(joining, "find_spec", {"libtpu": library}.get)
    assert joining._is_cluster() == found


def test_open_mpi_that_jax_does_not_know_has_a_remedy(monkeypatch):
    monkeypatch.setattr(joining.os, "environ", {"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(HostsError, match=r"--process_id=\$OMPI_COMM_WORLD_RANK"):
        joining._is_cluster()


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(("given", "devices"), [({}, [0]), ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, None)])
def test_cluster_says_where_its_hosts_meet_and_which_device_is_whose(monkeypatch, given, devices):
    for name, value in (SLURM | given).items():
        monkeypatch.setenv(name, value)
    options = HostOptions(coordinator="node07:61441", num_processes=2, process_id=1, timeout=9.0)
    assert joining._detect(9.0) == (options, devices)


def test_jax_that_cannot_be_asked_finds_the_hosts_itself(monkeypatch):
    monkeypatch.setattr("jax._src.clusters.ClusterEnv", None)
    assert joining._detect(9.0) is None
    monkeypatch.setattr(joining, "_is_cluster", lambda: True)
    asked = []
    monkeypatch.setattr(joining, "_join_by_jax", asked.append)
    assert joining.join(HostOptions(timeout=9.0)) is None
    assert asked == [9.0]
