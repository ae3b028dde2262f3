"""Espalier's server: a service that trains a network and prunes it at the same time, for as long as data keeps coming.

    app.cli                          composition root: the only module that knows every edge
    app.api  |  app.worker           HTTP in  |  time
    app.service                      use cases: one function = one use case = one transaction
    app.store | app.learning | app.intake    memory | algorithm | hostile bytes    (strangers to each other)
    app.domain | app.config          vocabulary | deployment settings
    app.errors                       the exception tree

Imports point downwards only. Only ``app.service.training`` (and so only the worker) imports torch.
"""

__version__ = "0.1.0"
