"""The dashboard: pages for people, made on the server.

Knows: how figures are put into words, drawings and HTML. Must never know: SQL, or how anything is decided; routes bring
what ``app.service`` answers.
"""
