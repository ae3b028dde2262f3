"""Scopes: which scope each route needs. This table is the whole of it; an auditor need read nothing else.

Knows: every route by its name, which is its operation id in ``/openapi.json``. Must never know: who asks, or how a key
is checked (``guard`` and ``middleware`` do that).

Laws:
    * Everything is refused that this table does not allow. A route that is missing here, and a name here that no route
      bears, keep the service from starting.
    * ``OPEN`` answers anybody. ``ANY_KEY`` needs some valid key. Everything else needs a key with that scope, or with
      ``admin``, which includes all. What no route answers needs a valid key before it is answered with 404 or 405.
    * A key for some models passes where the path names one of them, where the upload in the path is for one of them,
      and at ``FILTERED`` routes, which show it only its own. It never passes where ``audit`` or ``admin`` is needed.
    * GET and HEAD of a path need the same.

How to read a row: the route ``promote`` needs ``release``, so ``POST /v1/models/{model}/versions/{number}/promote`` is
answered with 401 without a key, with 403 to a key that has neither ``release`` nor ``admin``, and with 403 to a key for
other models. All of that is decided by the method, the path and the key, before a byte of the body is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from app.domain import Scope

Needs = Scope | Literal["any key"] | None
"""What a route asks of a key; None: nothing, not even that there is one."""

OPEN: Final = None
ANY_KEY: Final = "any key"

EXAMPLES: Final = Scope.TRAIN
"""What looking at single examples needs: values are shown to whoever decides what is trained on, not to everybody who
may look at models, as each box that follows the champion does."""

NEEDS = "espalier.needs"
"""Where the edge leaves what the route needs in an ASGI scope, for what is then answered from memory."""

CALLER = "espalier.caller"
"""Where the edge leaves who asks, and with which rights, in an ASGI scope."""

SCOPES: Mapping[str, Needs] = {
    # The service itself
    "livez": OPEN,
    "readyz": OPEN,
    "openapi": ANY_KEY,
    # The dashboard: its pages, what they are made of, and its forms
    "static_file": OPEN,
    "sign_in_page": OPEN,
    "sign_in_here": OPEN,
    "set_preferences": OPEN,
    "sign_out_here": ANY_KEY,
    "home": Scope.READ,
    "model_page": Scope.READ,
    "model_live": Scope.READ,
    "cycle_live": Scope.READ,
    "version_page": Scope.READ,
    "recipe_page": Scope.READ,
    "ask_recipe": Scope.READ,
    "do_recipe": Scope.TRAIN,
    "megabatches_page": Scope.READ,
    "megabatch_page": Scope.READ,  # with examples on it for whoever has EXAMPLES too
    "megabatch_sheet": EXAMPLES,
    "ask_sorting": Scope.TRAIN,
    "do_sorting": Scope.TRAIN,
    "ask_pin": Scope.TRAIN,
    "do_pin": Scope.TRAIN,
    "ask_erasure": Scope.ADMIN,
    "do_erasure": Scope.ADMIN,
    "ask_rollback": Scope.RELEASE,
    "do_rollback": Scope.RELEASE,
    "ask_promotion": Scope.RELEASE,
    "do_promotion": Scope.RELEASE,
    "ask_cycle": Scope.TRAIN,
    "do_cycle": Scope.TRAIN,
    "ask_pause": Scope.TRAIN,
    "do_pause": Scope.TRAIN,
    "ask_decision": Scope.RELEASE,
    "do_decision": Scope.RELEASE,
    "audit_page": Scope.AUDIT,
    "entry_page": Scope.AUDIT,
    "verify_here": Scope.AUDIT,
    "keys_page": Scope.ADMIN,
    "ask_key": Scope.ADMIN,
    "do_key": Scope.ADMIN,
    "ask_revocation": Scope.ADMIN,
    "do_revocation": Scope.ADMIN,
    "webhooks_page": Scope.ADMIN,
    "ask_new_webhook": Scope.ADMIN,
    "do_new_webhook": Scope.ADMIN,
    "webhook_page": Scope.ADMIN,
    "ask_webhook": Scope.ADMIN,
    "do_webhook": Scope.ADMIN,
    "ask_redelivery": Scope.ADMIN,
    "do_redelivery": Scope.ADMIN,
    # Sign-in; whoever signs in shows the key in the body
    "sign_in": OPEN,
    "who_am_i": ANY_KEY,
    "sign_out": ANY_KEY,
    # Models
    "create_model": Scope.TRAIN,
    "list_models": Scope.READ,
    "get_model": Scope.READ,
    "pause_model": Scope.TRAIN,
    "resume_model": Scope.TRAIN,
    "time_line": Scope.READ,
    "keep_initial_weights": Scope.TRAIN,
    "get_recipe": Scope.READ,
    "list_recipes": Scope.READ,
    "compare_recipes": Scope.READ,
    "preview_recipe": Scope.READ,
    "revise_recipe": Scope.TRAIN,
    # Megabatches
    "upload_megabatch": Scope.INGEST,
    "list_megabatches": Scope.READ,
    "get_megabatch": Scope.READ,
    "pin_megabatch": Scope.TRAIN,
    "unpin_megabatch": Scope.TRAIN,
    "quarantine_megabatch": Scope.TRAIN,
    "release_megabatch": Scope.TRAIN,
    # Erasure destroys what no other scope can bring back
    "erase": Scope.ADMIN,
    "erase_megabatch": Scope.ADMIN,
    # Uploads that take several requests
    "uploads_offered": Scope.INGEST,
    "upload_offered": Scope.INGEST,
    "create_upload": Scope.INGEST,
    "look_up_offset": Scope.INGEST,
    "append_to_upload": Scope.INGEST,
    "get_upload": Scope.INGEST,
    "delete_upload": Scope.INGEST,
    "override_method": Scope.INGEST,
    # Evaluation set
    "set_evaluation_set": Scope.INGEST,
    "get_evaluation_set": Scope.READ,
    # Cycles
    "request_cycle": Scope.TRAIN,
    "list_cycles": Scope.READ,
    "get_cycle": Scope.READ,
    # Versions
    "list_versions": Scope.READ,
    "get_version": Scope.READ,
    "download_checkpoint": Scope.READ,
    "get_manifest": Scope.READ,
    "version_audit": Scope.READ,
    "lineage": Scope.READ,
    "roll_back": Scope.RELEASE,
    # What went into a version, and what it answered
    "megabatch_versions": Scope.READ,
    "version_megabatches": Scope.READ,
    "version_samples": Scope.READ,
    "download_record": Scope.READ,
    "compare_versions": Scope.READ,
    # What clients decided with it
    "log_decisions": Scope.INGEST,
    "list_decisions": Scope.READ,
    # Aliases, and who decides about them
    "get_alias": Scope.READ,
    "alias_history": Scope.READ,
    "promote": Scope.RELEASE,
    "point_alias": Scope.RELEASE,
    "get_protection": Scope.READ,
    "protect_alias": Scope.ADMIN,
    "list_proposals": Scope.READ,
    "get_proposal": Scope.READ,
    "approve_proposal": Scope.RELEASE,
    "reject_proposal": Scope.RELEASE,
    # The audit log
    "list_entries": Scope.AUDIT,
    "log_head": Scope.AUDIT,
    "log_checkpoint": Scope.AUDIT,
    "log_keys": Scope.AUDIT,
    "prove_inclusion": Scope.AUDIT,
    "prove_consistency": Scope.AUDIT,
    "log_tile": Scope.AUDIT,
    "verify_log": Scope.AUDIT,
    "get_entry": Scope.AUDIT,
    # Events
    "follow_events": Scope.READ,
    "follow_model": Scope.READ,
    # Keys
    "create_key": Scope.ADMIN,
    "list_keys": Scope.ADMIN,
    "get_key": Scope.ADMIN,
    "revoke_key": Scope.ADMIN,
    # Webhooks
    "create_webhook": Scope.ADMIN,
    "list_webhooks": Scope.ADMIN,
    "get_webhook": Scope.ADMIN,
    "change_webhook": Scope.ADMIN,
    "delete_webhook": Scope.ADMIN,
    "enable_webhook": Scope.ADMIN,
    "disable_webhook": Scope.ADMIN,
    "rotate_webhook_secret": Scope.ADMIN,
    "test_webhook": Scope.ADMIN,
    "list_deliveries": Scope.ADMIN,
    "get_delivery": Scope.ADMIN,
    "redeliver": Scope.ADMIN,
}
"""Route name to what it needs."""

FILTERED = frozenset({"home", "list_models", "follow_events", "openapi", "who_am_i", "sign_out", "sign_out_here"})
"""Routes without a model in their path that a key for some models may use: they show it nothing of any other."""


def check_table(names: Iterable[str]) -> None:
    """Compare the table with the routes that there are.

    Raises:
        ValueError: a route that the table does not know, or a row of no route. The service must not start.
    """
    routes = set(names)
    if missing := sorted(routes - SCOPES.keys()):
        raise ValueError(f"these routes have no scope, so nobody may use them: {missing}; see app/api/scopes.py")
    if unknown := sorted((SCOPES.keys() | FILTERED) - routes):
        raise ValueError(f"these routes do not exist, but app/api/scopes.py names them: {unknown}")
