"""Files of grey with more than 8 bits, byte by byte: Pillow writes few of the kinds that it reads."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIZE = (32, 32)
RAMP = np.linspace(0, 4095, 32 * 32).round().reshape(SIZE).astype(np.uint16)  # 12 bits


def png(samples: np.ndarray, transparent: int | None = None) -> bytes:
    """16 bits of grey, (H, W), or of grey and alpha, (H, W, 2), each row filtered by its left neighbours."""
    height, width, *channels = samples.shape
    rows = np.ascontiguousarray(samples.astype(">u2")).view(np.uint8).reshape(height, width, -1)
    rows = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1])).reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, 4 if channels else 0, 0, 0, 0)
    mark = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    pixels = zlib.compress(b"".join(b"\1" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + mark + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(levels: np.ndarray, is_white_zero: bool = False, order: str = "<", is_deflated: bool = False) -> bytes:
    """Numbers, (H, W), of their own type, little-endian or (">") big-endian."""
    form = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    pixels = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    pixels = zlib.compress(pixels) if is_deflated else pixels
    size, white = len(pixels), int(not is_white_zero)
    tags = [(256, levels.shape[1]), (257, levels.shape[0]), (258, 8 * levels.itemsize), (259, 8 if is_deflated else 1)]
    tags += [(262, white), (273, 8), (277, 1), (278, levels.shape[0]), (279, size), (339, form)]

    def entry(tag: int, value: int) -> bytes:
        if tag in (273, 279):
            return struct.pack(f"{order}HHII", tag, 4, 1, value)
        return struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)

    ends = struct.pack(f"{order}H", len(tags)) + b"".join(entry(*each) for each in tags) + bytes(4)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8 + size) + pixels + ends


def pgm(levels: np.ndarray, top: int, is_text: bool) -> bytes:
    head = f"P{2 if is_text else 5} {levels.shape[1]} {levels.shape[0]} {top}\n".encode()
    return head + (" ".join(map(str, levels.ravel())).encode() if is_text else levels.astype(">u2").tobytes())
