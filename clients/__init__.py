"""The client side: training, evaluation and statistics, for one client or many at once."""
