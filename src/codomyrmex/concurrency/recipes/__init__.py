"""The primitives that users import: locks, semaphores, and later ones, one file each."""
