"""Oracles for inputs and for leftovers of a test, and generators of inputs."""
