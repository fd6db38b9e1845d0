"""shoal.Process: a process of its own for a function or a subclass, as `multiprocessing.Process`, and told why it died.

Role: the facade, and the thread that watches all processes of this program. See README.md beside this file.
"""
