"""`python -m nanoagent` is the command line."""

from nanoagent.cli import main

raise SystemExit(main())
