"""Explains failures: a pure function over a table of rules (docs/adr/0041-hints-from-rules.md).

`explain` takes the facts about a run and returns a hint, or None. A wrong hint costs the author more time
than none. So a rule applies only if the facts prove its cause. If no rule applies, there is no hint.

The modules, in the order in which to read them:

* `facts`: the facts about a run, and about the files of its code.
* `rule`: a rule, and helpers to write one.
* `table`: which rules apply to which ending, in which order; `explain`.
* `limits`: runs that a limit ended. `silence`: runs that succeeded and printed nothing.
* `common`: errors that all languages share. `network`: errors of connections.
* `python`, `nodejs`, `cpp`, `go`: errors of one language. `modules`: Python modules that were not found.
* `native`: libraries and programs that were built for another platform.
* `cpp_build`, `go_build`: failed builds.
* `image`: what the images have.

The texts that rules search are hostile input. Only the last 16 KiB are searched. Each pattern begins with a
fixed word, and all repetitions are bounded. So the time is linear in the length.
"""

from nanoagent.languages.explain.build import explain_build
from nanoagent.languages.explain.facts import Facts, NativeFile, TreeFacts
from nanoagent.languages.explain.table import advice_for, explain

__all__ = ["Facts", "NativeFile", "TreeFacts", "advice_for", "explain", "explain_build"]
