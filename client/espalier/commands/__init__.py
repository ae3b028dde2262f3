"""The client's commands, one module per noun; each joins the command line by ``register``, as plug-ins do."""
