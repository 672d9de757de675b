"""Runs from their folders, as methods over seeds: what is read, what belongs together, what is beyond noise."""
