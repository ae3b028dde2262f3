"""Container, compose and unit files, without an engine: they parse, and everything that they name is there."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNITS = sorted((ROOT / "deploy").glob("*.service"))
VARIABLES = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields}


def _help(command: str) -> str:
    """What ``espalier <command> --help`` prints; the command must exist."""
    program = Path(sys.executable).with_name("espalier")
    done = subprocess.run([program, command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read_string(path.read_text())
    return parser


def _started() -> list[list[str]]:
    """Every ``espalier ...`` that a deployment file starts."""
    composed = [service["command"] for service in COMPOSE["services"].values() if "command" in service]
    units = [shlex.split(_unit(path)["Service"]["ExecStart"])[1:] for path in UNITS]
    found = re.search(r"^CMD \[(.*)\]", DOCKERFILE, re.MULTILINE)
    assert found is not None
    return [*composed, *units, shlex.split(found[1].replace(",", " "))]


@pytest.mark.slow
def test_every_command_that_is_started_exists() -> None:
    for command, *options in _started():
        text = _help(command)
        assert not [option for option in options if option not in text], f"espalier {command} does not know {options}"


def test_compose_has_the_roles() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"db", "migrate", "api", "worker"}
    assert services["migrate"]["command"] == ["migrate"]
    assert services["api"]["command"] == ["serve", "--no-worker"]
    assert services["worker"]["command"] == ["work"]
    for role in ("api", "worker"):
        assert services[role]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert services[role]["volumes"] == services["migrate"]["volumes"], "blobs are shared"


def test_the_minio_overlay_fits_the_services_that_it_adds_to() -> None:
    overlay = yaml.safe_load((ROOT / "deploy" / "docker-compose.minio.yml").read_text())
    assert set(overlay["services"]) - set(COMPOSE["services"]) == {"minio", "bucket"}
    for role in ("api", "worker"):
        environment = overlay["services"][role]["environment"]
        assert {name for name in environment if name.startswith("ESPALIER_")} <= VARIABLES
        assert Settings(blobs_url=environment["ESPALIER_BLOBS_URL"]).blobs_url.startswith("s3://espalier/")


def test_compose_refuses_to_start_without_secrets() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "${ESPALIER_API_KEY:?" in text
    assert "${POSTGRES_PASSWORD:?" in text
    assert "ports" not in COMPOSE["services"]["db"]


@pytest.mark.parametrize("role", ["migrate", "api", "worker"])
def test_compose_sets_settings_that_exist(role: str) -> None:
    assert set(COMPOSE["services"][role]["environment"]) <= VARIABLES


def test_units_set_settings_that_exist() -> None:
    assert len(UNITS) == 3
    for path in UNITS:
        variables = re.findall(r"^Environment=(\w+)=", path.read_text(), re.MULTILINE)
        assert set(variables) <= VARIABLES
        assert _unit(path)["Service"]["User"] == "espalier"


def test_image_runs_as_nobody_in_particular_and_is_asked_for_its_health() -> None:
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER espalier$", final, re.MULTILINE)
    assert "/readyz" in final.split("HEALTHCHECK")[1]
    assert final.index("USER espalier") < final.index("ENTRYPOINT")


def test_image_copies_what_is_there_and_what_the_context_admits() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied <= admitted
    assert not [source for source in copied if not (ROOT / source).exists()]


def test_nginx_takes_uploads_as_large_as_the_service_does() -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    limit = re.search(r"client_max_body_size (\d+)m;", text)
    assert limit is not None
    assert int(limit[1]) * 1024 * 1024 == Settings.model_fields["max_upload_bytes"].default
    assert "proxy_request_buffering off;" in text


def test_ci_runs_without_input_and_cleans_up() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.index("make test") < text.index("make demo\n")
    assert "trap stop_postgres EXIT" in text
