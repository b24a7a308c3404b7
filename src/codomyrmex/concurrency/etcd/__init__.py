"""Everything that speaks to etcd, and nothing that knows what a lock is."""
