"""The bill of materials of a version: CycloneDX 1.6, with the model, its data, and what made it (an ML-BOM).

Knows: how CycloneDX spells facts. Must never know: where facts come from (``facts``), HTTP, torch.

Laws:
    * The same version gives the same document, but for the status that its data has now.
    * A hash stands only where it is that of a file. Digests of megabatches are of decoded arrays: they are properties.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from app import __version__
from app.domain import EvaluationSet, Megabatch
from app.service.facts import Facts

SPEC = "1.6"

_SPACE = uuid.UUID("5d3b1f7e-6f0b-5b7e-9a34-0c4c6f3a2b91")
"""Serial numbers of version 5 are made in it, from the checkpoint's digest."""


def bom(facts: Facts) -> bytes:
    """The document, as JSON."""
    version, made = facts.version, facts.manifest.get("environment") or {}
    data = [_megabatch(m, facts) for m in facts.megabatches]
    data += [] if facts.evaluation is None else [_evaluation(facts.evaluation, facts)]
    software = [_library("espalier", made.get("espalier"), ""), _library("torch", made.get("torch"), "pkg:pypi/torch@")]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": uuid.uuid5(_SPACE, version.checkpoint).urn,
        "version": 1,
        "metadata": {
            "timestamp": f"{version.created_at:%Y-%m-%dT%H:%M:%SZ}",
            "tools": {"components": [{"type": "application", "name": "espalier", "version": __version__}]},
            "component": _model(facts, [item["bom-ref"] for item in data]),
        },
        "components": data + software,
        "dependencies": [{"ref": _ref(facts), "dependsOn": [item["bom-ref"] for item in data + software]}],
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _model(facts: Facts, data: list[str]) -> dict[str, Any]:
    version, network = facts.version, facts.manifest.get("network") or {}
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(facts),
        "name": version.model,
        "version": str(version.number),
        "description": f"Classifier with {len(facts.classes)} classes, pruned to a density of {version.density:.6g}.",
        "hashes": [{"alg": "SHA-256", "content": version.checkpoint.removeprefix("sha256:")}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "classification",
                "architectureFamily": str(network.get("name", "unknown")),
                "modelArchitecture": json.dumps(network, sort_keys=True, ensure_ascii=False),
                "datasets": [{"ref": ref} for ref in data],
                "inputs": [{"format": _input(facts)}],
                "outputs": [{"format": f"one of {len(facts.classes)} class labels"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _performance(facts)},
            "considerations": {
                "technicalLimitations": [
                    "It answers with one of its classes, whatever it is shown.",
                    "Figures hold for data like that of the megabatches; other data was not measured.",
                    "Fairness, robustness to attacks and energy were not measured.",
                ],
            },
        },
        "properties": _properties(
            {
                "parent": version.parent,
                "cycle": version.cycle,
                "stage": version.stage,
                "status": version.status.value,
                "guardrails passed": version.verdict.passed,
                "density": f"{version.density:.17g}",
                "kept": version.kept,
                "total": version.total,
                "mask digest": version.mask_digest,
                "recipe digest": version.recipe_digest,
                "classes": json.dumps(facts.classes, ensure_ascii=False),
            }
        ),
    }


def _performance(facts: Facts) -> list[dict[str, str]]:
    found = [{"type": name, "value": f"{value:.17g}"} for name, value in sorted(facts.version.metrics.items())]
    for name in ("validation", "evaluation"):
        answers = facts.version.report.get(f"{name}_by_class") or {"accuracy": []}
        found += [
            {"type": f"{name}_accuracy", "value": f"{accuracy:.17g}", "slice": f"class {label}"}
            for label, accuracy in zip(facts.classes, answers["accuracy"], strict=False)
            if accuracy is not None
        ]
    return found


def _megabatch(megabatch: Megabatch, facts: Facts) -> dict[str, Any]:
    counts = {"digest of arrays": megabatch.digest, "examples": megabatch.examples, "bytes": megabatch.bytes}
    status = {"status": megabatch.status.value, "received": megabatch.received_at.isoformat()}
    return _data(f"megabatch-{megabatch.number}", facts, megabatch.histogram, {**counts, **status})


def _evaluation(held: EvaluationSet, facts: Facts) -> dict[str, Any]:
    counts = {"digest of arrays": held.digest, "examples": held.examples, "bytes": held.bytes}
    name = f"evaluation-set-{held.revision}"
    return _data(name, facts, held.histogram, {**counts, "use": "evaluation; never trained on"})


def _data(name: str, facts: Facts, histogram: tuple[int, ...], properties: Mapping[str, object]) -> dict[str, Any]:
    counted = dict(zip(facts.classes, histogram, strict=False))
    return {
        "type": "data",
        "bom-ref": f"{_ref(facts)}/{name}",
        "group": facts.version.model,
        "name": name,
        "data": [{"type": "dataset", "name": name}],
        "properties": _properties({**properties, "by class": json.dumps(counted, ensure_ascii=False)}),
    }


def _library(name: str, version: object, registry: str) -> dict[str, Any]:
    """A package that the version was made with, and its address in a registry, if it has one."""
    if version is None:
        return {"type": "library", "bom-ref": name, "name": name}
    purl = {"purl": registry + str(version).partition("+")[0]} if registry else {}
    return {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": str(version), **purl}


def _properties(values: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": f"espalier:{name}", "value": str(value)} for name, value in values.items() if value is not None]


def _input(facts: Facts) -> str:
    found = facts.manifest.get("input") or {}
    return f"{found.get('dtype') or 'unknown'} {json.dumps(found.get('shape'))}"


def _ref(facts: Facts) -> str:
    return f"espalier:{facts.version.model}@{facts.version.number}"
