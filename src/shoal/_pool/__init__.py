"""The pool: who gets which task, what a death costs, and the doing of it.

Role: everything on this program's side of a pool of workers. Owner: `executor.Pool`.
Read README.md beside this file first; then `dispatcher.py` (decides) and `engine.py` (does).
"""
