"""`python -m nanoagent` runs the command line."""

from nanoagent.cli import main

raise SystemExit(main())
