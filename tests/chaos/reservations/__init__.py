"""A checker of reservations and path locks, written from the documents alone.

``queues`` replays etcd's history, ``calls`` reads what processes say that they did, ``judge`` compares the two.
"""
