"""What a client keeps from one round to the next."""
