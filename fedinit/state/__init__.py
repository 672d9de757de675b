"""Values that outlive a round: the start, the base offset, checkpoints, files, digests."""
