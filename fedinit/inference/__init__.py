"""A trained model at work: on pictures of one's own, and on data that it is judged by."""
