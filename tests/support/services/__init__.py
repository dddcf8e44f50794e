"""Servers that a test starts, or puts in front of a real one."""
