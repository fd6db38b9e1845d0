"""How bytes travel between this program and its workers: frames, messages, pickling, errors.

Role: the wire, seen from both ends. Owner: none; both ends import the same code.
Nothing here knows what a pool is. See README.md beside this file for the byte layout.
"""
