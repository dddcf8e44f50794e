"""Real containers, and programs that compare runs with plain interpreters."""
