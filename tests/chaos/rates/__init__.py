"""The acceptance run of rate limits: a provider that counts exactly, clients as processes, and a judge of both.

All is written from the documents alone. Every process is on one host, so that their monotonic clocks are one.
"""
