"""Kinds of adapters, and banks of them over one frozen backbone."""
