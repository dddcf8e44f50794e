"""Programs that run in sandboxes: attacks, errors, packages."""
