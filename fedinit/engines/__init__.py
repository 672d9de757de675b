"""Grids: how a strategy's messages reach the clients."""
