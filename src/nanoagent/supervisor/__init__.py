"""The worker's side of the conversation with the supervisor, process 1 of a container.

* `wire`: the frames. The other side is src/nanosupervisor/wire.h.
* `stream`: reads frames as they arrive.
* `session`: one conversation: configure, prepare, run, collect.
* `gap`: the line that replaces the missing middle of a long output.
"""
