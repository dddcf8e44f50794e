"""Workers for tests: in a child process, in this process, with faults, and as an ordinary user."""
