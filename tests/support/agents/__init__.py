"""Workers: in a process, in this process, with faults, under an ordinary user."""
