"""Locks, conditions, semaphores, barriers, queues and channels that survive the death of any process at any instant.

The protocols are in README.md beside this file. Owner: each object belongs to every process that has it.
"""
