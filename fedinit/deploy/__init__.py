"""Federations of real Flower nodes: made (`init`), tried on this machine (`up`), run, looked at (`status`)."""
