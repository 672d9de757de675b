"""The configuration: what may be set, checked and composed."""
