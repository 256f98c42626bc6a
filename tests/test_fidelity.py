"""The ledger of differences to published code: its fields exist, differ, and are listed."""

import dataclasses
import re
import sys

import pytest
from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from differences import DIFFERENCES
from fidelity import PAGE, page

from experiment.configurations import load_configuration
from files.nested import flatten

WITH_FIELDS = [each for each in DIFFERENCES if each.fields]


def shallow(difference):
    """The same difference, of a network that does not take seconds to build."""
    config = load_configuration(difference.config)
    if not config.model.channel_multipliers:
        return difference
    fields = {
        "model.channel_multipliers": (1,),
        "model.blocks_per_resolution": 1,
        "model.attention_resolutions": (config.data.image_size,),
    }
    return dataclasses.replace(difference, settings=difference.settings | fields)


@pytest.mark.slow
@pytest.mark.parametrize("difference", WITH_FIELDS, ids=lambda each: each.name)
def test_fields_give_another_experiment(difference):
    ours, theirs = (flatten(each.config, ".") for each in shallow(difference).experiments())
    for field, value in difference.fields.items():
        assert theirs[field] == value
    assert any(ours[field] != theirs[field] for field in difference.fields)


def test_every_difference_states_its_size_or_measures_it():
    assert len({each.name for each in DIFFERENCES}) == len(DIFFERENCES)
    for each in DIFFERENCES:
        assert bool(each.measure) != bool(each.size), each.name
        assert not each.measure or each.fields, each.name


def test_page_is_made_of_the_results():
    text = PAGE.read_text()
    assert text == page()
    assert "not measured" not in text
    rows = re.findall(r"^\| (?!published|---)", text, re.MULTILINE)
    assert len(rows) == len(DIFFERENCES)
