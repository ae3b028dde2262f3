from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from espalier import cli, errors
from espalier.client import Client
from espalier.commands.models import assign, describe, flat, read_recipe
from tests.espalier.conftest import RECIPE, Service, examples


@dataclass
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ESPALIER_URL", service.url)

    def call(*words: object) -> Done:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def batch(tmp_path: Path) -> Callable[[int], Path]:
    def write(seed: int) -> Path:
        x, y = examples(seed)
        np.savez(tmp_path / f"{seed}.npz", x=x, y=y)
        return tmp_path / f"{seed}.npz"

    return write


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return path


# -- a day's work ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_days_work(run: Run, recipe: Path, batch: Callable[[int], Path], tmp_path: Path) -> None:
    made = run("model", "create", "gas-sensors", "--preset", "app-paper", "--recipe", recipe, "--set", "schedule.tau=6")
    assert made.out == (
        "created gas-sensors: app-paper recipe (revision 1), 100 % -> 26 % in 4 stages, one per megabatch\n"
    )
    for number in (1, 2):
        pushed = run("batch", "push", "gas-sensors", batch(number), "--wait")
        uploading, cycle, version = pushed.out.splitlines()
        assert re.fullmatch(
            rf"uploading   [\d.]+ kB   accepted as megabatch {number} \(120 examples, 3 classes\)", uploading
        )
        assert re.fullmatch(rf"cycle {number}     prune \d:\d\d · train \d:\d\d · judge \d:\d\d", cycle)
        density = r"0\.\d{3}" if number == 1 else r"0\.\d{3} -> 0\.\d{3}"
        arrival = "" if number == 1 else r"   on arrival \d\.\d{3}"
        assert re.fullmatch(
            rf"version {number}   density {density}   validation \d\.\d{{3}}{arrival}   gap -?\d\.\d{{3}}   "
            r"[\d.]+ kB \(dense [\d.]+ kB\)   champion",
            version,
        )
        assert pushed.code == 0
    listed = run("version", "list", "gas-sensors")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["version", "2", "1"]
    assert "published, champion" in listed.out.splitlines()[1]

    back = run("rollback", "gas-sensors", "--reason", "line 3 was miscalibrated", "-Q", "2")
    assert re.fullmatch(r"champion 2 -> 1, density 0\.\d+ -> 0\.\d+; megabatch 2 quarantined\n", back.out)
    verified = run("audit", "verify", "gas-sensors")
    assert verified.code == 0
    assert "every hash, their order and their root are right" in verified.out
    assert "2 versions of gas-sensors: the log knows every checkpoint" in verified.out

    pulled = run("version", "pull", "gas-sensors@champion", "-o", tmp_path)
    assert f"gas-sensors:1 -> {tmp_path / 'gas-sensors-1.safetensors'}" in pulled.out
    sound = run("version", "verify", "gas-sensors:1", "--file", tmp_path / "gas-sensors-1.safetensors")
    assert sound.code == 0
    assert "gas-sensors:1 is sound" in sound.out
    assert run("promote", "gas-sensors", 2, "--reason", "it was not").out.startswith("champion 1 -> 2")
    history = run("alias", "history", "gas-sensors").out.splitlines()
    assert [line.split()[:3] for line in history[1:]] == [
        ["4", "1", "2"],
        ["3", "2", "1"],
        ["2", "1", "2"],
        ["1", "-", "1"],
    ]
    assert "line 3 was miscalibrated" in history[2]
    assert "was version 2 at" in run("alias", "show", "gas-sensors", "--at", "2100-01-01T00:00:00Z").out
    assert "gas-sensors@champion is version 2" in run("alias", "show", "gas-sensors").out


def test_every_listing_and_page(run: Run, trained: str) -> None:
    assert trained in run("model", "list").out
    shown = run("model", "show", trained).out
    assert "schedule.tau" in shown
    assert re.search(r"champion +version 2 ", shown)
    assert [line.split()[0] for line in run("batch", "list", trained).out.splitlines()] == ["megabatch", "1", "2"]
    met = run("batch", "show", trained, 2).out
    assert "by version 1" in met
    assert re.search(r"input drift +0\.\d{3}, p = \S+, \d+ examples against \d+", met)
    assert re.search(r"most drifted +feature \d+ 0\.\d{3}", met)
    assert re.search(r"label shift +0\.\d{3}, p = ", met) and re.search(r"prequential drop +0\.\d{3}, p = ", met)
    assert [line.split()[0] for line in run("cycle", "list", trained, "-n", 1).out.splitlines()] == ["cycle", "2"]
    assert re.search(r"state +published", run("cycle", "show", trained, 1).out)
    assert re.search(r"layers\.0\.weight +24 x 16   density", run("version", "show", f"{trained}:2").out)
    assert [line.split()[0] for line in run("metrics", trained).out.splitlines()] == ["version", "1", "2"]
    tail = run("audit", "tail", "--model", trained, "--kind", "alias.moved").out.splitlines()
    assert len(tail) == 2
    assert "mask.pruned" in run("audit", "tail", "-n", 30).out
    number = tail[0].split()[0]
    assert re.search(r"kind +alias\.moved", run("audit", "show", number).out)


def test_pause_and_resume(run: Run, trained: str) -> None:
    assert run("model", "pause", trained, "--reason", "line 3").out == f"{trained} is paused: line 3\n"
    assert run("model", "resume", trained, "--reason", "mended").out == f"{trained} is active; none waiting\n"


def test_an_evaluation_set_from_the_command_line(run: Run, trained: str, batch: Callable[[int], Path]) -> None:
    pushed = run("evaluation", "push", trained, batch(9))
    assert re.fullmatch(r"uploading   [\d.]+ kB   in force as revision 1 \(120 examples, 3 classes\)\n", pushed.out)
    assert "in force already as revision 1" in run("evaluation", "push", trained, batch(9)).out
    shown = run("evaluation", "show", trained).out
    assert re.search(rf"evaluation set +{trained}, revision 1", shown)
    assert re.search(r"in megabatches +none of its examples", shown)
    overlapping = run("evaluation", "push", trained, batch(1))
    assert f"120 examples of {trained}'s megabatches are in it too" in overlapping.out
    assert f"espalier batch list {trained}" in overlapping.out
    assert re.search(r"in evaluation set +120", run("batch", "show", trained, 1).out)
    assert run("evaluation", "show", trained, "--json").json["overlap"] == 120
    refused = run("evaluation", "show", "nowhere")
    assert refused.code == 1 and "no model is named 'nowhere'" in refused.err


def test_pins_from_the_command_line(run: Run, trained: str) -> None:
    assert run("batch", "pin", trained, 1, "--reason", "rare").out == f"megabatch 1 of {trained} is pinned\n"
    assert "accepted, pinned" in run("batch", "list", trained).out
    assert re.search(r"status +accepted, pinned", run("batch", "show", trained, 1).out)
    lifted = run("batch", "unpin", trained, 1, "--reason", "no longer")
    assert lifted.out == f"megabatch 1 of {trained} is not pinned: the replay policy decides about it\n"
    assert run("batch", "pin", trained, 99, "--reason", "rare").code == 1
    assert run("batch", "pin", trained, 1).code == 2, "a pin has a reason"


def test_a_model_that_may_grow_from_the_command_line(run: Run, recipe: Path, batch: Callable[[int], Path]) -> None:
    made = run(
        "model", "create", "grows", "--recipe", recipe, "--input", '{"classes": 2}', "--unseen-classes", "extend",
        "--set", 'trigger={"name": "manual"}',
    )  # fmt: skip
    assert made.code == 0, made.err
    assert run("batch", "push", "grows", batch(1)).code == 0
    assert "3 classes: 0, 1, class-2 (more may come)" in run("model", "show", "grows").out
    run("model", "create", "stays", "--recipe", recipe, "--input", '{"classes": 2}')
    refused = run("batch", "push", "stays", batch(1))
    assert refused.code == 1 and "input.unseen_classes" in refused.err
    assert run("model", "create", "wrong", "--unseen-classes", "perhaps").code == 2


def test_watching(run: Run, trained: str, tmp_path: Path) -> None:
    seen = run("version", "watch", trained, "--once", "-d", tmp_path / "models")
    assert seen.out.endswith(f"champion   -> {tmp_path / 'models' / trained}-2.safetensors\n")
    watched = run("cycle", "watch", trained)
    assert watched.code == 0
    assert watched.out.splitlines()[-1].startswith("version 2")


def test_training_on_request(run: Run, batch: Callable[[int], Path], recipe: Path) -> None:
    run("model", "create", "asked", "--recipe", recipe, "--set", "trigger.name=manual")
    pushed = run("batch", "push", "asked", batch(1), "--wait")
    assert pushed.code == 0
    assert "`espalier cycle start asked --wait`" in pushed.out
    started = run("cycle", "start", "asked", "--reason", "now", "--wait")
    assert started.code == 0
    assert "version 1" in started.out


def test_nothing_there_yet_says_what_to_do(run: Run) -> None:
    run("model", "create", "empty")
    assert "espalier batch push empty FILE --wait" in run("version", "list", "empty").out
    assert "espalier batch push empty FILE" in run("batch", "list", "empty").out
    assert "espalier batch push empty FILE" in run("cycle", "list", "empty").out
    assert "espalier batch push empty FILE" in run("cycle", "watch", "empty").out
    assert "has no versions yet" in run("metrics", "empty").out


# -- for programs ---------------------------------------------------------------------------------------------------


def test_json_is_what_the_service_said(run: Run, trained: str, client: Client, tmp_path: Path) -> None:
    assert run("version", "show", trained, "--json").json == client.version(trained).document
    assert run("--json", "version", "show", trained).json == client.version(trained).document
    assert [model["name"] for model in run("model", "list", "--json").json].count(trained) == 1
    assert run("batch", "list", trained, "--json").json[1]["prequential"]["version"] == 1
    assert run("alias", "show", trained, "--json").json["version"] == 2
    assert run("metrics", trained, "--json").json[1]["champion_now"] is True
    pulled = run("version", "pull", trained, "-o", tmp_path, "--format", "dense", "--json").json
    assert pulled["bytes"] == (tmp_path / f"{trained}-2.safetensors").stat().st_size
    lines = run("audit", "tail", "-n", 3, "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == sorted(json.loads(line)["seq"] for line in lines)
    moved = run("rollback", trained, "--reason", "x", "--json").json
    assert (moved["previous"], moved["alias"]["version"]) == (2, 1)


def test_json_of_a_push(run: Run, recipe: Path, batch: Callable[[int], Path]) -> None:
    run("model", "create", "json-push", "--recipe", recipe)
    pushed = run("batch", "push", "json-push", batch(1), "--wait", "--json")
    assert pushed.err == ""
    assert pushed.json["megabatch"]["number"] == 1
    assert pushed.json["cycle"]["state"] == "published"
    assert pushed.json["version"]["number"] == pushed.json["cycle"]["version"]
    again = run("batch", "push", "json-push", batch(1), "--json").json
    assert again["megabatch"]["replayed"] is True
    assert again["cycle"] is None


def test_errors_as_json_are_problem_documents_on_stderr(run: Run) -> None:
    refused = run("model", "show", "nobody", "--json")
    assert (refused.code, refused.out) == (1, "")
    problem = json.loads(refused.err)
    assert (problem["status"], problem["type"]) == (404, "urn:espalier:problem:unknown-model")
    assert problem["request_id"]
    away = run("model", "list", "--json", "--url", "http://127.0.0.1:1")
    assert (away.code, json.loads(away.err)["type"]) == (3, "urn:espalier:problem:service-unreachable")
    misused = run("model", "--json", "bogus")
    assert (misused.code, json.loads(misused.err)["type"]) == (2, "urn:espalier:problem:usage")


def test_quiet_leaves_results_alone(run: Run, recipe: Path, batch: Callable[[int], Path]) -> None:
    run("model", "create", "quiet", "--recipe", recipe)
    assert run("-q", "batch", "push", "quiet", batch(1)).out == ""
    pushed = run("batch", "push", "quiet", batch(2), "--wait", "--quiet")
    assert [line.split()[0] for line in pushed.out.splitlines()] == ["version"]
    assert pushed.err == ""


def test_a_head_that_was_kept_shows_that_nothing_was_rewritten(run: Run, trained: str, tmp_path: Path) -> None:
    kept = tmp_path / "head.json"
    kept.write_text(run("audit", "verify", "--json").out)
    run("model", "pause", trained, "--reason", "the log grows")
    size = json.loads(kept.read_text())["head"]["size"]
    later = run("audit", "verify", "--since", kept)
    assert later.code == 0
    assert f"the first {size:,} entries are those of the head" in later.out
    kept.write_text(json.dumps({"size": size, "root": "0" * 64}))
    rewritten = run("audit", "verify", "--since", kept)
    assert rewritten.code == 4
    kept.write_text("[]")
    assert run("audit", "verify", "--since", kept).code == 2


# -- how it ends ----------------------------------------------------------------------------------------------------


def test_refusals_say_what_to_do(run: Run, tmp_path: Path) -> None:
    unknown = run("model", "show", "nobody")
    assert unknown.code == 1
    assert "espalier model list" in unknown.err
    assert "(request " in unknown.err
    wrong = run("model", "create", "wrong", "--set", "schedule.tau=100")
    assert wrong.code == 1
    assert "/schedule/tau" in wrong.err
    (tmp_path / "x.npz").write_bytes(b"\0no npz")
    run("model", "create", "refusing")
    assert "npz" in run("batch", "push", "refusing", tmp_path / "x.npz").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model", "bogus"], "No such command"),
        (["batch", "push", "gas", "/no/such/file.npz"], "does not exist"),
        (["rollback", "gas"], "--reason"),
        (["rollback", "gas", "--reason", "x", "-Q", "five"], "numbers of megabatches"),
        (["version", "show", "Gas!"], "gas-sensors:7"),
        (["alias", "show", "gas", "--at", "noon"], "2026-03-02T09:30:00Z"),
        (["model", "create", "gas", "--set", "tau"], "path=value"),
        (["model", "create", "gas", "--input", "[1]"], "must be an object"),
        (["model", "create", "gas", "--input", "{"], "cannot be read"),
    ],
)
def test_usage(run: Run, words: list[str], said: str) -> None:
    done = run(*words)
    assert done.code == 2
    assert said in done.err


def test_an_unreachable_service(run: Run) -> None:
    away = run("--url", "http://127.0.0.1:1", "audit", "show", 1)
    assert away.code == 3
    assert "espalier serve" in away.err


def test_verification_that_fails(run: Run, trained: str, client: Client, tmp_path: Path) -> None:
    path = client.download(f"{trained}:1", tmp_path / "one.safetensors")
    other = run("version", "verify", f"{trained}:2", "--file", path)
    assert other.code == 4
    assert f"espalier version pull {trained}:2" in other.err
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run("version", "verify", f"{trained}:1", "--file", path).code == 4


def test_a_cycle_that_is_withheld(run: Run, recipe: Path, batch: Callable[[int], Path]) -> None:
    schedule = 'schedule={"name": "one-shot", "target": 0.05}'
    floor = 'guardrails=[{"name": "layer-collapse", "at_least": 0.05}]'  # global ranking leaves one layer below it
    made = run("model", "create", "withheld", "--recipe", recipe, "--set", schedule, "--set", floor)
    assert made.code == 0, made.err
    pushed = run("batch", "push", "withheld", batch(1), "--wait")
    assert pushed.code == 5
    assert re.search(r"version 1 .* withheld: .*layer-collapse", pushed.out)
    assert run("alias", "show", "withheld").code == 1
    assert "champion" not in run("version", "list", "withheld").out
    refused = run("promote", "withheld", 1, "--reason", "looked at it")
    assert (refused.code, "override" in refused.err) == (1, True)
    done = run("promote", "withheld", 1, "--reason", "looked at it", "--override")
    assert done.out == "champion none -> 1 (revision 1)\n"


@pytest.mark.slow
def test_a_wait_that_runs_out(idle: Service, run: Run, recipe: Path, batch: Callable[[int], Path]) -> None:
    run("model", "create", "unfinished", "--recipe", recipe, "--url", idle.url)
    pushed = run("batch", "push", "unfinished", batch(1), "--wait", "--timeout", 0.2, "--url", idle.url)
    assert pushed.code == 5
    assert "espalier work" in pushed.err
    assert "cycle 1     queued" in pushed.err
    run("model", "pause", "unfinished", "--reason", "line 3", "--url", idle.url)
    watched = run("cycle", "watch", "unfinished", "--url", idle.url)
    assert watched.code == 5
    assert "espalier model resume unfinished" in watched.err


def test_every_error_has_its_exit_code() -> None:
    codes = {kind: cli.exit_code(kind.__new__(kind)) for kind in errors.EspalierClientError.__subclasses__()}
    assert {kind.__name__: code for kind, code in codes.items() if code != 1} == {
        "ServiceUnreachable": 3,
        "DigestMismatch": 4,
        "CheckpointMismatch": 4,
        "ProofRejected": 4,
        "CustodyMismatch": 4,
        "CycleFailed": 5,
        "CycleUnfinished": 5,
    }
    documented = cli.__doc__ or ""
    assert all(re.search(rf"^ +{code}  ", documented, re.MULTILINE) for code in {0, 2, 130, *codes.values()})


def test_what_nobody_foresaw_is_told_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "models", lambda self: 1 / 0)
    done = run("model", "list")
    assert done.code == 1
    assert "ESPALIER_TRACEBACK" in done.err


def test_a_disk_that_refuses(run: Run, trained: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run("version", "pull", trained, "-o", tmp_path / "file" / "model.safetensors")
    assert done.code == 1
    assert "error: " in done.err


def test_what_others_wrote_cannot_steer_the_terminal(run: Run, trained: str) -> None:
    run("rollback", trained, "--reason", "a\x1b[2Jb")
    assert "\x1b" not in run("alias", "history", trained).out
    assert "a\\x1b[2Jb" in run("alias", "history", trained).out


# -- processes ------------------------------------------------------------------------------------------------------


def program(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "espalier", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TERM": "dumb", **environment},
        check=False,
    )


@pytest.mark.slow
def test_python_m_espalier(service: Service) -> None:
    assert program("--version").stdout == "espalier 0.1.0\n"
    listed = program("model", "list", "--url", service.url, "--json")
    assert listed.returncode == 0
    assert isinstance(json.loads(listed.stdout), list)
    assert program("model", "list", "--url", "http://127.0.0.1:1").returncode == 3


@pytest.mark.slow
def test_a_reader_that_goes_away(service: Service, trained: str) -> None:
    command = f"{sys.executable} -m espalier audit tail -n 1000000 --json --url {service.url} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["seq"] == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_servers_commands_join() -> None:
    helped = program("--help").stdout
    assert all(f" {name} " in helped for name in ("model", "rollback", "serve", "work", "migrate", "doctor", "demo"))
    assert "port" in program("serve", "--help").stdout


@pytest.mark.slow
def test_a_server_that_cannot_be_loaded_does_not_stop_the_client(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "broken-1.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (found / "entry_points.txt").write_text("[espalier.commands]\nbroken = no_such_module:register\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    helped = program("--help", PYTHONPATH=path)
    assert helped.returncode == 0
    assert "warning: the commands of no_such_module:register cannot be loaded" in helped.stderr
    listed = program("model", "list", "--url", service.url, PYTHONPATH=path)
    assert (listed.returncode, listed.stderr) == (0, "")  # a client's command does not load them


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is tried in bash")
def test_completion(service: Service, trained: str) -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        answer = program(
            _ESPALIER_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(words) - 1),
            ESPALIER_URL=service.url,
        )
        return answer.stdout.split()

    assert completed("espalier ver") == ["version", "verify"]
    version = {"list", "show", "pull", "verify", "watch", "diff", "megabatches", "samples"}
    assert set(completed("espalier version ")) == version
    assert completed(f"espalier batch push {trained[:-1]}") == [trained]


# -- pieces -----------------------------------------------------------------------------------------------------------


def test_assignments() -> None:
    recipe: dict[str, Any] = {"guardrails": [{"name": "accuracy-drop"}]}
    for assignment in (
        "schedule.tau=4.5",
        "network.hidden=[128,64]",
        "network.name=mlp",
        "seed=7",
        "initial_weights=null",
        "guardrails.0.at_most=0.05",
        "note=a=b",
    ):
        assign(recipe, assignment)
    assert recipe == {
        "schedule": {"tau": 4.5},
        "network": {"hidden": [128, 64], "name": "mlp"},
        "seed": 7,
        "initial_weights": None,
        "guardrails": [{"name": "accuracy-drop", "at_most": 0.05}],
        "note": "a=b",
    }
    for wrong in ("seed", "=1", "a..b=1", "seed.deep=1", "guardrails.3=1", "guardrails.x.y=1"):
        with pytest.raises(typer.BadParameter, match=re.escape(wrong)):
            assign(recipe, wrong)


def test_recipes_from_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('preset = "app-paper"\n[schedule]\ntau = 6.0\n')
    assert read_recipe(tmp_path / "recipe.toml") == {"preset": "app-paper", "schedule": {"tau": 6.0}}
    for name, text in (("list.json", "[]"), ("broken.json", "{"), ("broken.toml", "= 1")):
        (tmp_path / name).write_text(text)
        with pytest.raises(typer.BadParameter, match=name):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"schedule": {"name": "app", "tau": 4.5, "stages": 8}, "trigger": {"name": "megabatches", "every": 1}},
            "100 % -> 37 % in 8 stages, one per megabatch",
        ),
        (
            {"schedule": {"name": "one-shot", "target": 0.2}, "trigger": {"name": "megabatches", "every": 3}},
            "100 % -> 20 % in 1 stage, one per 3 megabatches",
        ),
        (
            {"schedule": {"name": "constant"}, "trigger": {"name": "cron", "expression": "0 2 * * *"}},
            "no pruning, at '0 2 * * *' UTC",
        ),
        ({"schedule": {"name": "new"}, "trigger": {"name": "manual"}}, "schedule new, on request"),
        ({}, "schedule None, trigger None"),
    ],
)
def test_a_recipe_in_one_line(recipe: dict[str, Any], said: str) -> None:
    assert describe(recipe) == said


def test_paths_are_those_that_set_takes() -> None:
    recipe = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}], "f": {}}
    assert flat(recipe) == [("a.b", 1), ("a.c", [1, 2]), ("d.0.e", 2), ("f", {})]
