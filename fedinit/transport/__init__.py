"""How messages travel where there is no network."""
