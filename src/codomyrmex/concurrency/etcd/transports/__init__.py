"""The ways to speak to etcd, behind one protocol."""
