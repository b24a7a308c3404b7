"""Rate limits that the whole fleet shares: so much of each dimension in any window of a period."""
