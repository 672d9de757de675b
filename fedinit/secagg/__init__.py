"""Secure aggregation: a sum of clients' vectors of which the server sees nothing but the sum (Bonawitz et al. 2017).

Key agreement, secret sharing and sealing are Flower's, as its SecAgg+ uses them. The masks are not: Flower's generator
(`pseudo_rand_gen`) folds a key of 256 bits into 32, which whoever has a masked vector can try one by one.
"""

SECRETS = "secagg-secrets"  # of a client's Context: what it keeps of a sum while it lasts, in memory alone
