"""A Kubernetes cluster on one machine: three nodes in network namespaces, from programs and images made here.

`programs.py` builds the programs from Go modules, `images.py` makes the images, `control.py` starts the control plane,
`node.py` and `inside.py` a node, `cluster.py` all of it. By hand: `python -m tests.kubernetes.lab`.
"""
