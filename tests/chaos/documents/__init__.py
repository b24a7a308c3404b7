"""A checker written from the documents alone: a workload, faults, and a judge that reads nothing but etcd and facts.

Nothing here shares an assumption with the library's code. ``history`` follows etcd by plain HTTP, ``journal`` holds
what the processes say that they saw, ``judge`` compares the two with what README, SPEC and the API page promise.
"""
