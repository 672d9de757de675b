"""The aggregation methods, one a file."""
