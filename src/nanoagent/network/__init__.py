"""Gives each run its network: none, the models (by the gateway), or the internet (by the egress filter).

A container has a network with only a loopback interface. Its supervisor creates sockets in that network and
hands them to the worker before any program runs. A socket belongs to the network in which it was created,
whichever process holds it. So the worker accepts the connections of a run itself. The container needs no
process, address or route for this, and the worker needs no privilege. The worker accepts connections only
during runs whose policy allows them.

Read in this order:

* `base.py`: the interface of the gateway, and `NetworkRun`, the description of one run.
* `listening_sockets.py`: receives the sockets from a supervisor and checks them.
* `listeners.py`: listens during a run. `acceptor.py` accepts its connections, and `name_server.py` answers
  its DNS queries.
* `policy.py`: decides which names and addresses a run may reach.
* `egress.py`: the egress filter. `dns.py` reads and writes DNS messages.

The gateway to models is the package `ai`.
"""
