"""The evidence for the method: streams, rows, seeds, and the page that says what came out."""
