from __future__ import annotations

import io

import pytest
from rich.console import Console

from espalier.console import bars, clock, count, line, plain, plural, share, size, table


def written(terminal: bool, width: int = 200) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, emoji=False, markup=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("octets", "spelled"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (29_184, "29 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
        (4_100_000, "4.1 MB"), (9_960_000, "10 MB"), (3 * 10**15, "3000 TB"),
    ],
)  # fmt: skip
def test_sizes(octets: int, spelled: str) -> None:
    assert size(octets) == spelled


def test_numbers() -> None:
    assert count(2300) == "2,300"
    assert clock(9.9) == "0:09"
    assert clock(3723) == "1:02:03"
    assert share(None) == "-"
    assert share(0.31649) == "0.316"
    assert plural(1, "class", "classes") == "1 class"
    assert plural(6, "class", "classes") == "6 classes"


def test_text_of_others_cannot_steer_a_terminal() -> None:
    assert plain("a\x1b[2Jb\rc\x07\nd") == "a\\x1b[2Jb\\rc\\x07\nd"
    console = written(terminal=True)
    line(console, "[red]no markup[/red] :smile:")
    assert text_of(console) == "[red]no markup[/red] :smile:\n"


def test_a_table_elsewhere_than_on_a_terminal_is_plain_and_whole() -> None:
    console = written(terminal=False, width=20)
    table(console, ("version", "reason"), [(1, "first"), (12, "a long reason that is not cut anywhere")])
    assert text_of(console) == ("version   reason\n      1   first\n     12   a long reason that is not cut anywhere\n")


def test_a_table_on_a_terminal_fits_it() -> None:
    console = written(terminal=True, width=30)
    table(console, ("version", "reason"), [(1, "a long reason that does not fit at all")])
    assert max(map(len, text_of(console).splitlines())) <= 60  # escape codes come on top
    assert "\x1b[1m" in text_of(console)


def test_bars_elsewhere_are_plain_lines_and_results_stay_apart() -> None:
    out, err = written(terminal=False), written(terminal=False)
    with bars(out, err, silent=False) as drawn:
        stage = drawn.stage("cycle 5")
        for phase in ("prune", "train", "train"):
            stage.at(1, 2, phase)
            stage.say(phase)
        stage.done("train 0:09")
    assert text_of(out) == "cycle 5     train 0:09\n"
    assert text_of(err) == "cycle 5     prune\ncycle 5     train\n"


def test_bars_on_a_terminal_stay_when_they_are_full() -> None:
    out, err = written(terminal=True), written(terminal=False)
    with bars(out, err, silent=False) as drawn:
        stage = drawn.stage("uploading")
        stage.at(1, 2, "[1 of 2]")
        stage.say("not said here")
        stage.done("4.1 MB   accepted")
    last = [written for written in text_of(out).splitlines() if "uploading" in written][-1]
    assert "━" in last
    assert "4.1 MB   accepted" in last
    assert text_of(err) == ""


def test_silent_bars() -> None:
    out, err = written(terminal=True), written(terminal=False)
    with bars(out, err, silent=True) as drawn:
        stage = drawn.stage("uploading")
        stage.at(1, 2, "half")
        stage.say("begins")
        stage.done("accepted")
    assert text_of(out) + text_of(err) == ""
