"""Recipes through the client and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.client import Client
from espalier.errors import ApiProblem
from tests.espalier.test_cli import Run
from tests.espalier.test_cli import recipe as recipe  # a fixture
from tests.espalier.test_cli import run as run  # a fixture


def test_the_client_tries_and_revises(client: Client) -> None:
    client.create_model("revised", {"schedule": {"name": "factor", "target": 0.25, "stages": 2}})
    asked = {"schedule": {"target": 0.5}}
    seen = client.recipes.preview("revised", asked)
    assert [point.density for point in seen.planned] == pytest.approx([0.5**0.5, 0.5])
    assert [(c.pointer, c.before, c.after) for c in seen.changes] == [("/schedule/target", 0.25, 0.5)]
    assert client.recipes.get("revised").revision == 1
    done = client.recipes.revise("revised", asked, "a quarter costs too much")
    assert (done.revision, done.digest, done.changes) == (2, seen.digest, seen.changes)
    assert [found.revision for found in client.recipes.list("revised")] == [2, 1]
    assert client.recipes.compare("revised", 2, 1).changes[0].after == 0.25
    with pytest.raises(ApiProblem, match="says that already") as raised:
        client.recipes.revise("revised", asked, "again")
    assert raised.value.status == 409


def test_the_commands(run: Run, recipe: Path) -> None:
    run("model", "create", "told", "--recipe", recipe)
    shown = run("recipe", "show", "told").out
    assert "revision 1" in shown and "network.hidden" in shown
    one_shot = 'schedule={"name": "one-shot", "target": 0.4}'
    seen = run("recipe", "preview", "told", "--set", one_shot)
    assert seen.code == 0 and "+1" in seen.out and "0.400" in seen.out and "█" in seen.out
    done = run("recipe", "revise", "told", "--set", one_shot, "--reason", "at once")
    assert done.code == 0 and done.out.startswith("told: revision 2 is in force")
    assert "schedule" in run("recipe", "diff", "told", 1, 2).out
    assert run("recipe", "history", "told").out.count("sha256:") == 2
    assert run("recipe", "diff", "told", 1, 1).out.startswith("revisions 1 and 1 say the same")
    refused = run("recipe", "revise", "told", "--set", "network.name=cnn", "--reason", "no")
    assert refused.code == 1 and "the network stays" in refused.err
