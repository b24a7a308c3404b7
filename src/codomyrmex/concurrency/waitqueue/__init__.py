"""One engine for everything that waits: ordered entries under a prefix, and a grant rule over them."""
