"""Uniform words out of a key: the key stream of ChaCha20, which nobody without the key can tell from chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class KeyStream:
    """Words under one key, each given once."""

    def __init__(self, key: bytes) -> None:
        """key: of 32 bytes, and for one stream. Raises ValueError for another length."""
        from cryptography.hazmat.primitives.ciphers import Cipher  # here: most clients need no key
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """(count,) the next words."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.dtype("<u8")).astype(np.uint64)
