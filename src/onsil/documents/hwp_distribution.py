"""Distribution (배포용) HWP: sections scrambled with a key that travels in the file.

Such a file forbids editing and perhaps printing; it is not secret, for anybody may open it. Each
section starts with a record of 256 bytes. Its first four are a seed; from the seed runs the
generator of Microsoft's C library, whose output, XORed over the record, lays open a 16-byte key at
a place the seed also tells (Hancom, 한글 문서 파일 형식, 배포용 문서). The rest is AES-128 in ECB
mode.

AES is FIPS 197, decryption only. ECB treats every block alike, so numpy turns all blocks of a
section at once; the tables are computed from the field GF(2⁸), not typed in.
"""

from functools import cache
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HEAD = 4 + 256  # the record's own header and its data


def descramble(stream: bytes) -> bytes:
    """The section behind the record of its key (still compressed, if the file says so)."""
    body = stream[HEAD:]
    return decrypt(body[: len(body) // 16 * 16], key(stream[4:HEAD]))


def key(record: bytes) -> bytes:
    """The 16 bytes hidden in the record's 256."""
    seed = state = unpack_from("<I", record)[0]
    mask = bytearray()
    while len(mask) < len(record):
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        value = state >> 16 & 0xFF
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        mask += bytes([value]) * ((state >> 16 & 0xF) + 1)
    start = 4 + (seed & 0xF)
    return bytes(a ^ b for a, b in zip(record, mask, strict=False))[start : start + 16]


def decrypt(data: bytes, key: bytes) -> bytes:
    """AES-128-ECB, all blocks side by side. State columns as in FIPS 197: byte i is row i mod 4."""
    import numpy as np

    sbox = _sbox()
    inverse = np.zeros(256, np.uint8)
    inverse[sbox] = np.arange(256, dtype=np.uint8)
    times = {n: np.array([_times(n, x) for x in range(256)], np.uint8) for n in (9, 11, 13, 14)}
    rounds = _expanded(key, sbox)
    shifted = [(i - 4 * (i % 4)) % 16 for i in range(16)]  # InvShiftRows: where each byte was
    state = np.frombuffer(data, np.uint8).reshape(-1, 16) ^ rounds[10]
    for number in range(9, -1, -1):
        state = inverse[state[:, shifted]] ^ rounds[number]
        if number:
            state = _unmixed(state, times)
    return state.tobytes()


def _unmixed(state: "np.ndarray", times: dict[int, "np.ndarray"]) -> "np.ndarray":
    """InvMixColumns: each column by the matrix whose first row is 14 11 13 9."""
    import numpy as np

    columns = state.reshape(-1, 4, 4)
    out = np.zeros_like(columns)
    for row in range(4):
        for step, factor in enumerate((14, 11, 13, 9)):
            out[:, :, row] ^= times[factor][columns[:, :, (row + step) % 4]]
    return out.reshape(-1, 16)


def _times(a: int, b: int) -> int:
    """The product in GF(2⁸) modulo x⁸+x⁴+x³+x+1."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


@cache
def _sbox() -> "np.ndarray":
    """Inverse in the field (3 generates all its elements), then the affine map of FIPS 197."""
    import numpy as np

    powers = [1]
    for _ in range(254):
        powers.append(_times(3, powers[-1]))
    box = np.full(256, 0x63, np.uint8)
    for n, x in enumerate(powers):
        inverse = powers[-n % 255]
        turned = inverse
        for turn in range(1, 5):
            turned ^= (inverse << turn | inverse >> (8 - turn)) & 0xFF
        box[x] = turned ^ 0x63
    return box


def _expanded(key: bytes, sbox: "np.ndarray") -> "np.ndarray":
    """The eleven round keys."""
    import numpy as np

    words = [list(key[i : i + 4]) for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        word = words[-1]
        if i % 4 == 0:
            word = [int(sbox[b]) for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _times(2, constant)
        words.append([a ^ b for a, b in zip(words[-4], word, strict=True)])
    return np.array(words, np.uint8).reshape(11, 16)
