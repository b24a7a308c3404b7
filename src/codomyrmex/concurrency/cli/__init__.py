"""The command line. Knows nothing of etcd's protocol or keys; nothing imports it."""
