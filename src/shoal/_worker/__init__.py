"""What runs in a worker process, and in the template that workers are forked from.

Role: the child's side. Owner: the processes themselves. Never imports `_pool`; imports in milliseconds,
because every started program pays for it.
"""
