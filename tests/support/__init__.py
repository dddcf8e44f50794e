"""Helpers that several tests share.

`services`: servers that a test starts, or puts in front of a real one.
    own_redis: a Redis server for one test. proxy: cuts, delays or garbles a connection.
    recorder: notes every AWS call and enforces a policy. slow_server: an HTTP server that never finishes.
    metadata_service: EC2's instance metadata. folder_store: an object store in a folder.
    gateways: the AI gateway with a stub model server. certificates: a test's certificate authority.
    own_network, networks: network namespaces, and runs inside them. listeners: targets for attacks.

`agents`: workers.
    worker: a worker in a child process, and the sender's end of the queue. in_process: one in this process.
    worker_rig: a worker on test doubles. ordinary_user: a worker that does not run as root.
    agent_server: starts workers by fork, without their imports.
    experienced_agent, faulty_agent, limited_agent, watched_agent: workers that a test has changed.

`doubles`: second implementations of ports and collaborators, without Docker.
    fake_driver, fake_supervisor: containers and supervisors. pooled: containers of the pool.
    fakes: settings, jobs and the collaborators of the executor. fake_records: records of functions.

`sandboxes`: real containers.
    containers, adversarial: run a program in a real sandbox. engines: a Docker engine for one test.
    identity, identity_harness, identity_programs, import_programs: compare the zygote with plain Python.
    packaged: functions with an installed package, whose imports are reused.
    functions: run functions from zips with the code cache. module_programs: programs with modules.
    workshop: builds C++ and Go code, and runs the programs.
    node_identity, node_programs: compare the standby process of Node.js with plain `node`.

`programs`: programs that run inside sandboxes, and packages for them.
    attacks: the table of attacks. error_programs: programs that fail. packages: packages of PyPI and npm.
    hostile_packages: packages that attack from the importer.
    languages: reads docs/functions.md. record_stderr: records error messages.

`catalogue`: small programs that fail as authors' programs do, each with the cause that its hint must name.
    program: one program. python, nodejs, cpp, go: programs for which the rules were written.
    check: programs that were kept aside. noise: programs that print handled errors.
    libraries: shared libraries for other platforms.

`checks`: generators of inputs, and what must be true of them.
    archives, messages, conversations: oracles. raw_archives, raw_messages, zips: inputs.
    packs: makes packs from folders, and folders from packs.
    outputs, leftovers: what a run and a worker leave behind. reliability: counts lost and repeated jobs.
    matrix: the part of a matrix of attacks, languages and levels that `make test` runs.
    task_pages: the files and commands of docs/tasks. waiting: waits for a condition.
    costs: compares the counts of a hot job with their budgets.
"""
