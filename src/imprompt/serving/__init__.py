"""`imprompt serve`: three HTTP APIs on one engine that batches the steps of all requests."""
