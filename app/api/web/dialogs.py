"""Dialogs: a question before something changes, and what was done then.

Knows: that a script shows a question as a dialog, and that it is a page of its own for browsers without scripts. Must
never know: what is asked.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from app.api.web.rendering import render, wants_fragment


def ask(request: Request, question: str, **context: Any) -> Response:
    """The question of the template ``ask_<question>.html``."""
    template = f"ask_{question}.html" if wants_fragment(request) else "dialog_page.html"
    return render(request, template, active="models", part=f"ask_{question}.html", **context)


def done(request: Request, name: str, what: str, **context: Any) -> Response:
    """What was done to the model ``name``; the page behind the dialog asks for its parts again."""
    template = "done.html" if wants_fragment(request) else "dialog_page.html"
    answer = render(request, template, active="models", part="done.html", name=name, what=what, **context)
    answer.headers["HX-Trigger"] = "espalier-changed"
    return answer
