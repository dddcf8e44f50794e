"""Programs that run inside sandboxes: attacks, errors, packages."""
