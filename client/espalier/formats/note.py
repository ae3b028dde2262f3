"""Signed notes and checkpoints of the log, as C2SP has them (signed-note, tlog-checkpoint).

Knows: ed25519 keys in the note format, how a note is signed and opened, what a checkpoint's body says. Must never know:
where keys are kept, or which log a checkpoint is compared with.

Laws:
    * A note is opened only by a key that the reader trusts beforehand; the keys that come with it prove nothing.
    * Signatures by unknown keys are ignored; a wrong one by a known key refuses the note.
    * What is read is strict: there is one spelling of every checkpoint.

A note is text, a blank line, and one line for each signature: an em dash, the key's name, and the base64 of the key's
four-byte hash followed by the signature over the text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from espalier.errors import ProofRejected

_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_NAME = re.compile(r"[^\s+]+")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_HASH_BYTES = 4
_MOST_SIGNATURES = 100


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: what a reader of the log is given once, by a way that it trusts.

    Attributes:
        name: of the log, or of who else signs.
        public: 32 bytes (ed25519, RFC 8032).
    """

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<name>+<key hash, 8 hex digits>+<base64 of 0x01 and the public key>``.

        Raises:
            ProofRejected: it is no such key, or its hash is not its own.
        """
        name, hashed, data = _fields(text.strip())
        key = cls(name, data)
        if key.hash.hex() != hashed:
            raise ProofRejected(f"the key {name!r} does not have the hash {hashed!r}: a character of it is wrong")
        return key

    @property
    def hash(self) -> bytes:
        """``SHA-256(name || 0x0A || 0x01 || public key)``, the first four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:_HASH_BYTES]

    @property
    def text(self) -> str:
        """The key as it is handed on."""
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    def verify_bytes(self, data: bytes, signature: bytes) -> None:
        """Check a signature over bytes.

        Raises:
            ProofRejected: it was not made with this key over these bytes.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, data)
        except (InvalidSignature, ValueError):
            raise ProofRejected(f"the signature is not that of the key {self.name}+{self.hash.hex()}") from None


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A private key with its name. ``text`` is a secret."""

    name: str
    private: bytes

    def __repr__(self) -> str:
        return f"SignerKey({self.name!r})"

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new key.

        Raises:
            ValueError: the name holds white space or a plus sign, or nothing.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a key: it must not be empty, or hold white space or '+'")
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``PRIVATE+KEY+<name>+<key hash>+<base64 of 0x01 and the seed>``.

        Raises:
            ProofRejected: it is no such key. What is wrong is said, the key is not.
        """
        text = text.strip()
        if not text.startswith(_PRIVATE):
            raise ProofRejected("this is no signing key: it begins with another word than PRIVATE+KEY+")
        name, hashed, data = _fields(text.removeprefix(_PRIVATE))
        key = cls(name, data)
        if key.verifier.hash.hex() != hashed:
            raise ProofRejected(f"the signing key {name!r} does not have its own hash: a character of it is wrong")
        return key

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        private = Ed25519PrivateKey.from_private_bytes(self.private)
        return VerifierKey(self.name, private.public_key().public_bytes_raw())

    @property
    def text(self) -> str:
        """The key as it is kept."""
        data = base64.b64encode(_ED25519 + self.private).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.hash.hex()}+{data}"

    def sign_bytes(self, data: bytes) -> bytes:
        """The 64-byte signature over bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.private).sign(data)


def _fields(text: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    hashed, _, spelled = rest.partition("+")
    data = _plain(spelled)
    if not _NAME.fullmatch(name) or data[:1] != _ED25519 or len(data) != 33:
        raise ProofRejected("this is no ed25519 key of the form <name>+<hash>+<base64>")
    return name, hashed, data[1:]


@dataclass(frozen=True, slots=True)
class LogCheckpoint:
    """What a log's operator commits to: so many entries, with this root.

    Attributes:
        origin: names the log; checkpoints of one origin must be consistent with one another.
        size: number of entries.
        root: Merkle root over them (RFC 6962), 32 bytes.
        extensions: further lines, which are signed, too.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def body(self) -> str:
        """The text that is signed, with its last line end."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def of(cls, body: str) -> Self:
        """Read the text of a note.

        Raises:
            ProofRejected: it is not spelled as ``body`` spells it.
        """
        lines = body.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise ProofRejected("a checkpoint has three lines at least: origin, size and root; none is empty")
        origin, size, root, *extensions = lines[:-1]
        if not re.fullmatch(r"0|[1-9][0-9]{0,15}", size):
            raise ProofRejected(f"a checkpoint's size is a plain number, not {size[:40]!r}")
        try:
            found = cls(origin, int(size), base64.b64decode(root, validate=True), tuple(extensions))
        except binascii.Error:
            raise ProofRejected("a checkpoint's root is not base64") from None
        if len(found.root) != 32 or found.body() != body:
            raise ProofRejected("a checkpoint's root is not one SHA-256 in plain base64")
        return found


def sign(body: str, signers: Sequence[SignerKey]) -> str:
    """The note of a text.

    Args:
        body: ends with a line end, and holds no blank line.
        signers: one signature line each, in this order.
    """
    if not body.endswith("\n") or "\n\n" in body:
        raise ValueError("a note's text ends with a line end and holds no blank line")
    lines = [_signature(signer, body.encode()) for signer in signers]
    return f"{body}\n{''.join(lines)}"


def _signature(signer: SignerKey, text: bytes) -> str:
    data = base64.b64encode(signer.verifier.hash + signer.sign_bytes(text)).decode()
    return f"— {signer.name} {data}\n"


def opened(note: str, keys: Sequence[VerifierKey]) -> LogCheckpoint:
    """The checkpoint in a note, once a trusted key has signed it.

    Args:
        note: as it was served.
        keys: those that the reader trusts; one good signature is enough.

    Raises:
        ProofRejected: it is no note, none of the keys signed it, or one of them did not sign this text.
    """
    body, signatures = split(note)
    trusted = {(key.name, key.hash): key for key in keys}
    good = 0
    for name, hashed, signature in signatures:
        if (key := trusted.get((name, hashed))) is not None:
            key.verify_bytes(body.encode(), signature)
            good += 1
    if not good:
        names = ", ".join(f"{name}+{hashed.hex()}" for name, hashed, _ in signatures) or "nobody"
        wanted = ", ".join(f"{key.name}+{key.hash.hex()}" for key in keys) or "none"
        raise ProofRejected(f"the checkpoint is signed by {names}, but the keys that are trusted are {wanted}")
    return LogCheckpoint.of(body)


def split(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """A note's text, and (key name, key hash, signature) for each of its signature lines; nothing is verified.

    Raises:
        ProofRejected: it is no note.
    """
    body, blank, lines = note.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or lines.count("\n") > _MOST_SIGNATURES:
        raise ProofRejected("this is no signed note: a text, a blank line, and signature lines were expected")
    found = []
    for line in lines[:-1].split("\n"):
        parts = _SIGNATURE.fullmatch(line)
        data = _plain(parts[2]) if parts else b""
        if parts is None or len(data) <= _HASH_BYTES:
            raise ProofRejected(f"a signature line of the note cannot be read: {line[:80]!r}")
        found.append((parts[1], data[:_HASH_BYTES], data[_HASH_BYTES:]))
    return f"{body}\n", found


def _plain(text: str) -> bytes:
    """Bytes of base64 in its one spelling, in which no bit is left over; empty for any other text."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
    return data if base64.b64encode(data).decode() == text else b""
