"""One module per noun. A route translates: path, query and body in, one use case, headers and body out."""
