"""Actors: objects in processes of their own, called by messages.

Role: the package's files and its protocol are described in its README.md. Owner: `shoal.actor`.
"""
