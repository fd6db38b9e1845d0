"""Supervision: children that are started in order, watched, restarted by Erlang/OTP's rules and stopped in reverse.

Role: the package's files are listed in its README.md. Owner: `shoal.Supervisor`.
"""
