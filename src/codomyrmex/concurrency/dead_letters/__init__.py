"""The dead letter queue: failed operations are kept, shown, retried by any free worker, never dropped in silence."""
