"""A PostgreSQL of the test's own, which may be stopped at any moment; nobody else uses it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Cluster:
    """A cluster in a temporary folder, run by the user ``postgres`` where the test is run by root."""

    def __init__(self) -> None:
        self.bin = BINARIES[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="espalier-faults-"))
        self.port = free_port()
        self.starts = 0

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )
        self.starts += 1

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is a crash: no checkpoint, open transactions are lost."""
        self._pg_ctl("stop", "-m", mode, check=False)

    def answers(self) -> bool:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            return False
        finally:
            engine.dispose()
        return True

    def _pg_ctl(self, verb: str, *arguments: str, check: bool = True) -> None:
        self._run("pg_ctl", verb, "-D", str(self.folder / "data"), "-w", *arguments, check=check)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        before = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        with (self.folder.parent / f"{self.folder.name}.out").open("w+b") as output:
            command = [*before, str(self.bin / program), *arguments]
            ended = subprocess.run(command, stdout=output, stderr=output, cwd="/", timeout=120, check=False)
            output.seek(0)
            said = output.read().decode(errors="replace")
        Path(output.name).unlink()
        assert not check or ended.returncode == 0, said


needs_postgresql = pytest.mark.skipif(
    not BINARIES or (os.geteuid() == 0 and shutil.which("runuser") is None),
    reason="needs the server programs of PostgreSQL under /usr/lib/postgresql",
)
