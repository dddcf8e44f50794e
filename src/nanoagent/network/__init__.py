"""What a run may reach beside its own processes: nothing, models through a gateway, or the internet.

A container has a network of its own with nothing in it but loopback. Its supervisor makes sockets *in that
network* and hands their descriptors to the agent, once, before any program is there. A socket belongs to
the network it was made in, whoever holds it: so the agent accepts a run's connections itself, without a
process, an address or a route in the container, and without a right that it would not have anyway. While no
run that may has begun, nobody listens on them.

Read `base.py` (the ports), `policy.py` (which names and addresses may be reached), `listeners.py` (the
descriptors, and what is accepted on them), `dns.py` and `egress.py` (the filtering path to the internet).
The gateway to models is the package `ai`.
"""
