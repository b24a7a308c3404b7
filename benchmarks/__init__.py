"""How fast the library is, as ratios against etcd itself and its peers: ``python -m benchmarks``."""
