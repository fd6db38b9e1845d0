"""Memory shared between processes.

Role: layouts and views of shared memory. Owner: see each module.
"""
