"""The fault campaign: everything that may go wrong, injected from seeds, and what must hold all the same."""
