"""Bytes sealed with a passphrase: AES-256-GCM under a key from scrypt.

Layout, integers little-endian::

    magic 19 | salt 16 | key check 16 | nonce 12 | header length 4 | payload length 8
    | SHA-256 of all before 32 | header | ciphertext of the payload | GCM tag 16

Everything before the ciphertext is authenticated with it. The key check, an output of scrypt that
is independent of the key, tells a wrong passphrase from damage; the digest, which protects
nothing, tells a damaged salt from a wrong passphrase; the lengths tell a file that was cut short.
"""

import hashlib
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from rayeffdet.errors import CheckpointError

_MAGIC = b"RAYEFFDET-SEALED-1\n"
_FIELDS = struct.Struct("<19s16s16s12sIQ")
_DIGEST_BYTES = 32
_TAG_BYTES = 16
_FRONT_BYTES = _FIELDS.size + _DIGEST_BYTES


def seal(payload: bytes, *, passphrase: str, header: bytes) -> bytes:
    """Returns the payload encrypted, behind a header that stays readable but cannot be changed.

    Args:
        payload: Less than 2 GiB, the limit of one AES-GCM message.
        passphrase: What ``open_sealed`` must be given.
        header: Shown in clear, for people and tools that look at the file.
    """
    salt, nonce = os.urandom(16), os.urandom(12)
    key, check = _derive(passphrase, salt)
    fields = _FIELDS.pack(_MAGIC, salt, check, nonce, len(header), len(payload))
    clear = fields + hashlib.sha256(fields).digest() + header
    return clear + AESGCM(key).encrypt(nonce, payload, clear)


def is_sealed(blob: bytes) -> bool:
    """Tells by the first bytes whether ``seal`` made this, whole or not."""
    return blob.startswith(_MAGIC)


def open_sealed(blob: bytes, *, passphrase: str, name: str) -> bytes:
    """Returns the payload that was sealed.

    Args:
        blob: What ``seal`` returned.
        passphrase: The one it was sealed with.
        name: What to call the blob in errors: its path.

    Raises:
        CheckpointError: The passphrase is wrong, or the blob was cut short or changed.
    """
    if len(blob) < _FRONT_BYTES:
        raise CheckpointError(cut_short(name, found=len(blob)))
    fields, digest = blob[: _FIELDS.size], blob[_FIELDS.size : _FRONT_BYTES]
    if hashlib.sha256(fields).digest() != digest:
        raise CheckpointError(damaged(name))
    _, salt, check, nonce, header_bytes, payload_bytes = _FIELDS.unpack(fields)
    clear_bytes = _FRONT_BYTES + header_bytes
    whole_bytes = clear_bytes + payload_bytes + _TAG_BYTES
    if len(blob) < whole_bytes:
        raise CheckpointError(cut_short(name, found=len(blob), whole=whole_bytes))
    key, own_check = _derive(passphrase, salt)
    if own_check != check:
        raise CheckpointError(
            f"{name}: encryption_key is not the key that this file was encrypted with;"
            " give the key of the run that wrote it"
        )
    try:
        return AESGCM(key).decrypt(nonce, memoryview(blob)[clear_bytes:], blob[:clear_bytes])
    except InvalidTag:
        raise CheckpointError(damaged(name)) from None


def cut_short(name: str, *, found: int, whole: int | None = None) -> str:
    """Words the problem of a file that ends too early, sizes in bytes."""
    size = f"{found:,} of {whole:,} bytes are there" if whole else f"only {found:,} bytes are there"
    return f"{name}: the file is cut short: {size}; copy it again or use another checkpoint"


def damaged(name: str) -> str:
    """Words the problem of a file whose bytes are not those that were written."""
    return (
        f"{name}: the file is damaged: its bytes are not those that were written;"
        " copy it again or use another checkpoint"
    )


def _derive(passphrase: str, salt: bytes) -> tuple[bytes, bytes]:
    """Returns the 32-byte AES key and the 16-byte key check."""
    scrypt = Scrypt(salt=salt, length=48, n=2**15, r=8, p=1)
    derived = scrypt.derive(passphrase.encode())
    return derived[:32], derived[32:]
