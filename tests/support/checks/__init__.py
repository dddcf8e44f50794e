"""What must be true of inputs and of what a test leaves behind; generators of inputs."""
