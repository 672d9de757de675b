"""Differential privacy: what a release costs, and what an audit finds that it cost."""
