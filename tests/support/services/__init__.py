"""Servers that a test starts, and proxies in front of real servers."""
