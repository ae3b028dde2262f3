"""Use cases: one function = one use case = one transaction (a cycle has two, with the device's work between them).

Functions take a ``Store`` first and return values of ``app.domain`` or small frozen results. They know the store, the
intake and the recipe; only ``training`` may import torch, so that the API process stays small.
"""
