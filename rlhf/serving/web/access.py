"""The users of the service: API keys, accounts with passwords, sessions of the page, and a brake on guessing.

Two files, each with a line per name; an empty line and one that begins with # are skipped.

    KEYS:      NAME:sha256$HEX, or NAME:KEY, or KEY
    ACCOUNTS:  NAME:scrypt$N$R$P$SALT$HASH  (base64), written by `rlhf chat --add-account NAME`

Nothing here knows HTTP beyond the text of a header, so that it is tested without a server.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from rlhf.errors import UserError

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
KEY_PREFIX = "rlhf-"
SHORTEST_KEY, SHORTEST_PASSWORD = 16, 8  # characters
# RFC 7914 and OWASP's advice: about 16 MB and 50 ms for each guess
SCRYPT = {"n": 2**14, "r": 8, "p": 1}
HASHES_AT_ONCE = 4
SESSION_SECONDS = 7 * 24 * 3600
SESSIONS = 10_000  # kept at once
FAILURES, FAILURE_SECONDS = (
    5,
    60,
)  # wrong passwords of one address, and the time in which they are counted
ADDRESSES = 10_000  # counted at once


# ---- files ---------------------------------------------------------------------------------------------------------


def read_keys(path: str | os.PathLike) -> dict[str, str]:
    """name -> sha256 of the key, in hex."""
    keys = {}
    for number, line in _lines(path):
        name, separator, value = line.rpartition(":")
        if not separator:  # a key alone
            name = f"key {number}"
        keys[name] = _key_digest(value, f"{path}, line {number}")
    if not keys:
        raise UserError(f"{path} holds no key: add one with --add-key NAME")
    return keys


def keys_of_environment(text: str) -> dict[str, str]:
    """name -> sha256 of the key, from keys between commas or spaces (the variable RLHF_API_KEYS)."""
    keys = {}
    for number, value in enumerate(text.replace(",", " ").split(), 1):
        keys[f"key {number}"] = _key_digest(value, "RLHF_API_KEYS")
    return keys


def _key_digest(value: str, where: str) -> str:
    kind, separator, digest = value.partition("$")
    if separator and kind == "sha256":
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError(f"{where}: sha256$ must be followed by 64 hex digits")
        return digest
    if len(value) < SHORTEST_KEY:
        raise UserError(f"{where}: a key has at least {SHORTEST_KEY} characters")
    return hashlib.sha256(value.encode()).hexdigest()


def read_accounts(path: str | os.PathLike) -> dict[str, str]:
    """name -> the hash of the password."""
    accounts = {}
    for number, line in _lines(path):
        name, _, stored = line.partition(":")
        if not NAME.fullmatch(name) or not _is_password_hash(stored):
            raise UserError(
                f"{path}, line {number}: not NAME:scrypt$...; write it with --add-account NAME"
            )
        accounts[name] = stored
    if not accounts:
        raise UserError(f"{path} holds no account: add one with --add-account NAME")
    return accounts


def _lines(path: str | os.PathLike) -> list[tuple[int, str]]:
    """(number, text) of the lines that say something."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            lines.append((number, line))
    return lines


def add_key(path: str | os.PathLike, name: str) -> str:
    """Add a fresh key, or replace the one of this name. Returns the key; the file holds only its hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    _set_line(path, name, "sha256$" + hashlib.sha256(key.encode()).hexdigest())
    return key


def add_account(path: str | os.PathLike, name: str, password: str) -> None:
    """Add an account, or replace its password."""
    if len(password) < SHORTEST_PASSWORD:
        raise UserError(f"a password has at least {SHORTEST_PASSWORD} characters")
    _set_line(path, name, hash_password(password))


def _set_line(path: str | os.PathLike, name: str, value: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: a name has 1 to 64 letters, digits or ._@- ")
    path = Path(path)
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() != name:
                kept.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    # Created with these rights: after a later chmod somebody might have opened it already.
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join([*kept, f"{name}:{value}"]) + "\n")
    temporary.replace(path)


# ---- passwords -----------------------------------------------------------------------------------------------------


def hash_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)
    numbers = "$".join(str(number) for number in SCRYPT.values())
    return f"scrypt${numbers}${_base64(salt)}${_base64(digest)}"


def password_matches(password: str, stored: str) -> bool:
    _, n, r, p, salt, digest = stored.split("$")
    wanted = base64.b64decode(digest)
    costs = {"n": int(n), "r": int(r), "p": int(p)}
    computed = hashlib.scrypt(
        password.encode(errors="replace"), salt=base64.b64decode(salt), dklen=len(wanted), **costs
    )
    return hmac.compare_digest(computed, wanted)


def _is_password_hash(stored: str) -> bool:
    return re.fullmatch(r"scrypt(\$\d{1,7}){3}(\$[A-Za-z0-9+/]+=*){2}", stored) is not None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- the service's view --------------------------------------------------------------------------------------------


class TooManyFailures(Exception):
    """Wrong passwords or keys came too often from this address. seconds: until it may try again."""

    def __init__(self, seconds: int):
        super().__init__(seconds)
        self.seconds = seconds


class Throttle:
    """Counts failures of each address. clock: seconds, for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise TooManyFailures while the address has to wait."""
        address = network_of(address)
        times = self._recent(address)
        if len(times) >= FAILURES:
            seconds = times[0] + FAILURE_SECONDS - self.clock()
            raise TooManyFailures(max(1, round(seconds)))

    def forgive(self, address: str) -> None:
        """Take back the latest count: it was no failure."""
        times = self.failures.get(network_of(address))
        if times:
            times.pop()

    def count(self, address: str) -> None:
        address = network_of(address)
        times = self._recent(address)
        times.append(self.clock())
        self.failures[address] = times
        self.failures.move_to_end(address)
        if len(self.failures) > ADDRESSES:
            self.failures.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        oldest = self.clock() - FAILURE_SECONDS
        return [moment for moment in self.failures.get(address, []) if moment > oldest]


def network_of(address: str) -> str:
    """The address, or of IPv6 the /64 network of it: one customer has all 2**64 addresses of that."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    # A socket for both kinds shows 1.2.3.4 as ::ffff:1.2.3.4.
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


class Access:
    """Tells who asks. keys: name -> sha256 in hex. accounts: name -> hash of the password.

    Without both everybody may use the service. May be called from several threads.
    """

    def __init__(
        self,
        keys: dict[str, str] | None = None,
        accounts: dict[str, str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.keys, self.accounts = dict(keys or {}), dict(accounts or {})
        self.throttle = Throttle(clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()
        # Passwords that matched, as keyed hashes: a client that sends one with each request would cost 50 ms each time.
        self._matched: set[bytes] = set()
        self._trying: set[bytes] = set()  # that are being hashed now
        self._secret = secrets.token_bytes(32)
        self._nobody = hash_password(secrets.token_urlsafe())
        self._hashing = threading.Semaphore(HASHES_AT_ONCE)

    @property
    def required(self) -> bool:
        return bool(self.keys or self.accounts)

    def user_of_header(self, header: str, address: str) -> str | None:
        """The name for an Authorization header ("Bearer KEY" or "Basic ..."), None for a wrong one.

        Raises TooManyFailures. A right key always passes: it is too long to be guessed.
        """
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "bearer":
            user = self.user_of_key(value.strip())
            if user is None:
                self._failed(address)
            return user
        if scheme.lower() == "basic":
            name, separator, password = _decoded(value).partition(":")
            if separator:
                return self.user_of_password(name, password, address)
        self._failed(address)
        return None

    def user_of_key(self, key: str) -> str | None:
        """The name of a key. All keys are compared, each in constant time."""
        digest = hashlib.sha256(key.encode(errors="replace")).hexdigest()
        user = None
        # No break at a match: the time would tell how far the list was read.
        for name, wanted in self.keys.items():
            if hmac.compare_digest(digest, wanted):
                user = name
        return user

    def user_of_password(self, name: str, password: str, address: str) -> str | None:
        """The account's name if the password is right. A key is a right password, too, for its own name."""
        user = self.user_of_key(password)
        if user is not None:
            return user
        proof = hmac.digest(self._secret, f"{name}\0{password}".encode(errors="replace"), "sha256")
        with self._lock:
            if proof in self._matched:
                return name
            self.throttle.check(address)
            # Counted before it is known to be wrong, or a hundred guesses at once would all be compared. The same guess
            # counts once: a client may send its right password with many requests at once.
            first = proof not in self._trying
            if first:
                self._trying.add(proof)
                self.throttle.count(address)
        # Outside the lock: others may be recognized meanwhile.
        stored = self.accounts.get(name, self._nobody)  # as slow for a name that does not exist
        with self._hashing:
            matches = password_matches(password, stored) and name in self.accounts
        with self._lock:
            # Only the one that was counted may take the count back.
            if first:
                self._trying.discard(proof)
            if matches:
                self._matched.add(proof)
                if first:
                    self.throttle.forgive(address)
        return name if matches else None

    def _failed(self, address: str) -> None:
        with self._lock:
            self.throttle.check(address)
            self.throttle.count(address)

    # ---- sessions of the page

    def open_session(self, user: str) -> str:
        """A token for a cookie."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            # As a hash: who reads the memory of the process, in a core dump for instance, cannot log in.
            self._sessions[_digest(token)] = (user, self._clock() + SESSION_SECONDS)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        return token

    def user_of_session(self, token: str) -> str | None:
        with self._lock:
            user, ends = self._sessions.get(_digest(token), (None, 0.0))
            return user if self._clock() < ends else None

    def close_session(self, token: str) -> None:
        with self._lock:
            self._sessions.pop(_digest(token), None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("utf-8", errors="replace")
    except (binascii.Error, ValueError):
        return ""
