"""One flattened graph per evaluation, compiled once and cached."""
