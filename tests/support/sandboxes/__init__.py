"""Real containers, and the programs that compare runs with bare interpreters."""
