"""Measurements beside their targets: ``python -m benchmarks`` runs all, ``python -m benchmarks.NAME`` one."""
