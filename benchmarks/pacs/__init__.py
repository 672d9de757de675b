"""Accuracy on real images, method by method (benchmarks/pacs/__main__.py)."""
