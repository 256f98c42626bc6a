"""Hosts compare all rows that they compute with."""

import pytest

from configs import bridge_points
from errors import HostsError
from experiment.build import build
from jobs.same_data import require_same_data
from training import hosts


class Other:
    """A channel to a host whose fields are ours, but for one."""

    index, peers = 0, (1,)

    def __init__(self, changed):
        self.changed, self.sent = changed, []

    def send(self, value):
        self.sent.append(value)

    def receive(self, peer):
        return {"place": "the data", "value": self.ours | {self.changed: "another"}}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["", " for testing"])
@pytest.mark.parametrize("field", ["config.data", "config.coupling.data"])
def test_rows_of_every_set_and_split_are_compared(monkeypatch, field, split):
    experiment = build(bridge_points.get_config())
    require_same_data(experiment.data, experiment.ends)  # of one host
    channel, gathered = Other(field + split), hosts._gathered

    def gather(place, value):
        channel.ours = value
        return gathered(place, value)

    monkeypatch.setattr(hosts, "_channel", channel)
    monkeypatch.setattr(hosts, "_gathered", gather)
    with pytest.raises(HostsError, match=f"the data: {field}{split} is '.*' on host 0, 'another'"):
        require_same_data(experiment.data, experiment.ends)
