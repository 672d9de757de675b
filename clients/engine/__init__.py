"""Where and when clients' work is done."""
