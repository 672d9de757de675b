"""What a client remembers from one round to the next."""
