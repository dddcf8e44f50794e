"""`nanoagent doctor`: what the host and the services give a worker, each finding with its remedy.

Two halves. `gather` looks and asks, and makes plain facts (`facts`) of it; `host`, `engine`, `cloud` and
`results` judge facts purely, so that hosts nobody has at hand are tested as recorded trees. `examination`
puts the halves together; `report` shows the findings, with every secret taken out.

Nothing is changed but by harmless probes: a multipart upload that is given up at once, keys on Redis that
live for a second, and one container, made and removed. Read `finding`, then `examination`.
"""
