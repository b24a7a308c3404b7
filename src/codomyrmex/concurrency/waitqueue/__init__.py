"""One engine for everything that waits: ordered entries under a prefix, and a grant rule over them.

The way of one lock, from ``LockManager.acquire`` to etcd and back:

1. ``recipes/acquire.py`` finds the session and its ``LocalQueues`` (``local.py``), and passes admission
   (``admission.py``) to the queue of its first name.
2. It makes one ``Entry`` (``entry.py``) for each name, whose key has a slot from ``key_slots.py``.
3. ``join.py`` sends one transaction, which reads each queue and puts each key; its revision is the fencing token.
   ``etcd/commit.py`` sends it, as ``etcd/ledger.py`` decides, by a transport of ``etcd/transports/``.
4. ``turn.py`` judges the reading by a rule of ``rules.py``: granted, or wait for the predecessor.
5. ``wait.py`` follows the predecessor's deletion and release marker, or is told by it if it is local, until the grant.
6. ``join.py`` checks that the session is trusted, and returns a ``Grant`` (``grant.py``) for each entry.
7. From the second tick on ``own_key.py`` watches the key. ``hold_limit.py`` ends a hold after ``max_hold``, or after
   ``max_idle`` without progress (``progress.py``). The loss of one entry is the loss of its group (``group.py``).
8. ``Entry.release`` deletes the key, with a release marker (``handoff.py``) if many wait; so the successor is granted.
"""
