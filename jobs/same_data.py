"""Hosts that compute together read the same data: compared before anything is computed of it."""

from experiment.data import Data
from experiment.ends import FIELD, Ends
from training.hosts import require_same, several


def require_same_data(data: Data, ends: Ends | None = None) -> None:
    """Raise HostsError on all hosts unless they have read the same rows.

    Those are the training and the test rows, and those of the second data set of `ends`.

    Raises:
        ConfigError: if they cannot be read.
    """
    if not several():
        return
    sets = {"config.data": data}
    if ends is not None and ends.other is not None:
        ends.check_rows()
        sets[FIELD] = ends.other
    fields = {}
    for field, each in sets.items():
        fields[field] = each.splits.fingerprint
        fields[f"{field} for testing"] = each.splits.fingerprints["test"]
    require_same("the data", fields)
