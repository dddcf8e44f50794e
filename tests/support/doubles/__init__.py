"""Second implementations of ports and collaborators, without Docker."""
