"""What shoal asks of Linux: mechanism only, no policy.

Role: the one package that touches `ctypes`, `fork`, `prctl`, `memfd`, signals on descriptors, descriptor passing
and cgroups; a port to another system replaces this package and nothing else. Owner: nobody; functions, no state.

Invariants
    O1  Importing any module here costs about what `socket` and `signal` cost: what is heavier is imported inside
        the function that needs it, because a worker must start in milliseconds.
    O2  Nothing here decides: no retry, no default of a pool, no message to a user.
    O3  Every descriptor made here is close-on-exec from its first instant.
    O4  Nothing here raises because a process, file or group has just gone: that is an answer (`None`, `False`).

See README.md beside this file for the protocols (lifeline, reaping, descriptor passing).
"""
