"""The worker pool: local, with no etcd in it; dead letters and reports are handed to it."""
