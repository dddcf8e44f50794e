"""The worker's side of the session with a supervisor, and of the connection with a launcher.

* `wire`: the frames. src/nanosupervisor/wire.h is the supervisor's side.
* `stream`: reads frames as they arrive, and sends frames.
* `session`: one session: configure, prepare, run, collect.
* `launcher`: the connection with process 1 of a container at isolation level L2.
* `output`: receives the output of one run: its two streams, and its files in /output.
* `exit_status`: the exit code and the signal in a wait status.
* `gap`: the line that replaces the missing middle of a long output.
"""
