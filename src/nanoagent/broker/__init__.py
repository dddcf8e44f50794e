"""See the package docstring of nanoagent."""
