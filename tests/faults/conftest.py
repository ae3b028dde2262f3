"""The fault suite's count: every test says how many faults it injected, and the run ends with a table of them.

A test of this folder is marked ``faults``, and ``slow`` unless it is marked ``sample``.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from _pytest.nodeid import coerce_node_id

from tests.scenarios.conftest import deployment, on_each_database  # noqa: F401  # fixtures, for this folder too

HERE = Path(__file__).parent
NAMES = {
    "injected": "faults injected",
    "crash_states": "crash states enumerated",
    "kills": "kills survived",
    "bad_inputs": "bad inputs tried",
    "schemathesis": "schemathesis cases",
    "lost": "lost",
    "doubled": "doubled",
    "unaudited": "unaudited",
}


class Tally:
    """What one test did, and what it found missing, twice or unrecorded."""

    def __init__(self):
        self.counts = Counter(dict.fromkeys(NAMES, 0))

    def add(self, **counts):
        unknown = counts.keys() - NAMES.keys()
        assert not unknown, f"no such count: {sorted(unknown)}; there are {', '.join(NAMES)}"
        self.counts.update(counts)


@pytest.fixture
def tally(request):
    tally = Tally()
    yield tally
    # Worker processes of xdist send a test's properties along with its report.
    request.node.user_properties.append(("faults", dict(tally.counts)))


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            if not item.nodeid.endswith(item.name):
                # Schemathesis gives all operations one id, of which xdist would run one.
                item._id = coerce_node_id(f"{item.nodeid.rpartition('::')[0]}::{item.name}")
            item.add_marker(pytest.mark.faults)
            if item.get_closest_marker("sample") is None:
                item.add_marker(pytest.mark.slow)


def _of(report):
    """A teardown's report alone has what the fixture added on leaving."""
    return next((value for name, value in report.user_properties if name == "faults"), None)


class Ledger:
    """Adds up the reports of the whole run, in the one process that prints."""

    def __init__(self):
        self.tests, self.failed, self.counts = 0, 0, Counter(dict.fromkeys(NAMES, 0))

    def pytest_runtest_logreport(self, report):
        if report.failed and "faults/" in report.nodeid:
            self.failed += 1
        if report.when == "teardown" and (counts := _of(report)) is not None:
            self.tests += 1
            self.counts.update(counts)

    def pytest_terminal_summary(self, terminalreporter):
        if not self.tests:
            return
        terminalreporter.section("faults")
        for name, said in NAMES.items():
            terminalreporter.write_line(f"{said:<26}{self.counts[name]:>8}")
        if path := os.environ.get("ESPALIER_FAULTS_JSON"):
            record = {"tests": self.tests, "failed": self.failed, **{name: self.counts[name] for name in NAMES}}
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(record, indent=2) + "\n")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(), "espalier-faults")
