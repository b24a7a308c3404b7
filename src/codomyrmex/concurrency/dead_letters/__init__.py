"""The dead letter queue: what failed is kept, shown, retried by whoever is free, and never dropped in silence."""
