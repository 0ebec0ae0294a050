"""A certificate and its key, proven before anybody connects.

Rather than reading the certificate's fields, the check shakes hands with it in memory, as a client
that trusts exactly this certificate (RFC 5246/8446 through OpenSSL): what does not fit, is expired,
not yet valid or not for servers fails here, with OpenSSL's own word for it, and not at the first
visitor. Left out: whether others trust its issuer, which only they can say.
"""

import os
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from onsil.errors import OnsilError

NO_PEM = ("one of the two is no PEM file", "둘 중 하나가 PEM 파일이 아닙니다")


@dataclass(frozen=True)
class TLSFiles:
    """`cert` (PEM, the chain after it) and `key` (PEM, for its owner's eyes)."""

    cert: Path
    key: Path

    def checked(self) -> float:
        """Seconds until the certificate expires. Raises OnsilError when it cannot be used."""
        for path in (self.cert, self.key):
            if not path.is_file():
                raise _unusable(path, "there is no such file", "파일이 없습니다")
        if os.name == "posix" and stat.S_IMODE(self.key.stat().st_mode) & 0o077:
            raise OnsilError(
                en=(
                    f"{self.key} can be read by others on this machine.",
                    "Whoever has the key can pretend to be this server.",
                    f"chmod 600 {self.key}",
                ),
                ko=(
                    f"{self.key} 파일을 이 컴퓨터의 다른 사용자도 읽을 수 있습니다.",
                    "이 키를 가진 사람은 이 서버인 척할 수 있습니다.",
                    f"다음을 실행해 주세요: chmod 600 {self.key}",
                ),
            )
        try:
            server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.load_cert_chain(self.cert, self.key, password=_no_password)
        except OSError as e:  # OpenSSL's, or a file that may not be read
            why = getattr(e, "reason", None) or ("" if isinstance(e, ssl.SSLError) else e.strerror)
            en, ko = (why, why) if why else NO_PEM
            raise _unusable(self.cert, f"{en} (with {self.key})", f"{ko} ({self.key})") from e
        try:
            return _shaken(server, self.cert) - time.time()
        except ssl.SSLError as e:
            why = getattr(e, "verify_message", "") or str(e.reason)
            raise _unusable(self.cert, why, why) from e


def _no_password() -> str:
    """OpenSSL would ask at the terminal; a server has nobody there."""
    return ""


def tls_files(cert: Path | None, key: Path | None) -> TLSFiles | None:
    """The pair that was given, if one was. Raises OnsilError for one without the other."""
    if cert and key:
        return TLSFiles(cert, key)
    if not cert and not key:
        return None
    raise OnsilError(
        en=(
            "Only one of --tls-cert and --tls-key was given.",
            "A certificate without its key proves nothing, and the other way round.",
            "Give both, or neither.",
        ),
        ko=(
            "--tls-cert와 --tls-key 중 하나만 지정했습니다.",
            "인증서와 키는 함께 있어야 쓸 수 있습니다.",
            "둘 다 지정하거나 둘 다 빼 주세요.",
        ),
    )


def _shaken(server: ssl.SSLContext, cert: Path) -> float:
    """A handshake in memory with a client that trusts this certificate: the time it expires."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a leaf may be what is trusted
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = server.wrap_bio(to_server, to_client, server_side=True)
    far = client.wrap_bio(to_client, to_server)
    waiting = [far, near]
    for _ in range(8):  # flights of a handshake, and to spare
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    found = far.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))


def _unusable(path: Path, why: str, ko_why: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{path} cannot be used for TLS: {why}.",
            "Every client would be turned away, or could be deceived.",
            "Give --tls-cert and --tls-key a certificate that is valid today, and its own key.",
        ),
        ko=(
            f"{path}을(를) TLS에 쓸 수 없습니다: {ko_why}.",
            "이대로는 접속이 모두 거부되거나 다른 서버에 속을 수 있습니다.",
            "오늘 유효한 인증서와 그 인증서의 키를 --tls-cert와 --tls-key로 지정해 주세요.",
        ),
    )
