"""The conduct of a run at the server."""
