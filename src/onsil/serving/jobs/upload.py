"""A form with a file in it, written to the disk while it arrives.

`multipart/form-data` (RFC 7578) as OpenAI's clients send it: a few short fields and one file. The
file is never in memory as a whole; a field that is too long, a second file and a field that nobody
knows are refused.
"""

from typing import Any

from onsil.serving.guard import Refused
from onsil.serving.jobs.files import FileStore, Incoming, TooLarge

FIELDS = ("purpose",)
LONGEST_FIELD, LONGEST_HEADER = 1_000, 4_000


class Upload:
    """`feed` the body, then `finish`; `discard` in any case. Raises Refused for what is no such
    form."""

    def __init__(self, files: FileStore, content_type: str):
        from python_multipart import MultipartParser
        from python_multipart.multipart import parse_options_header

        self._options = parse_options_header
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(415, "The body must be multipart/form-data with a boundary.")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.file: Incoming | None = None
        self._files, self._ended = files, False
        self._name, self._into = "", bytearray()
        self._header, self._headers = (bytearray(), bytearray()), {}
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._head(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._head(1, data[start:end]),
                "on_header_end": self._head_end,
                "on_headers_finished": self._heads_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Raises Refused, and StoreError when the disk refuses."""
        from python_multipart.exceptions import FormParserError

        try:
            self._parser.write(data)
        except FormParserError as e:
            raise Refused(400, f"The form cannot be read: {e}.") from e
        except TooLarge as e:
            raise Refused(413, str(e), param="file") from e

    def finish(self) -> Incoming:
        """The file. Raises Refused when the form stopped short or held none."""
        if not self._ended:
            raise Refused(400, "The form ended before its last boundary.")
        if self.file is None:
            raise Refused(400, "The form holds no file.", param="file")
        return self.file

    def discard(self) -> None:
        if self.file is not None:
            self.file.discard()

    # ── what the parser finds ───────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        self._headers, self._name = {}, ""

    def _head(self, which: int, data: bytes) -> None:
        self._header[which].extend(data)
        if len(self._header[which]) > LONGEST_HEADER:
            raise Refused(400, "A header of the form is too long.")

    def _head_end(self) -> None:
        field, value = (bytes(part) for part in self._header)
        self._headers[field.lower()] = value
        self._header = (bytearray(), bytearray())

    def _heads_end(self) -> None:
        _, options = self._options(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._into = bytearray()
        if self._name == "file":
            if self.file is not None:
                raise Refused(400, "The form holds two files.", param="file")
            self.filename = _word(options.get(b"filename", b""))
            self.file = self._files.incoming()
        elif self._name not in FIELDS:
            raise Refused(400, f"{self._name[:64]!r} is not known here.", param=self._name[:64])

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            assert self.file is not None
            self.file.write(data[start:end])
            return
        self._into.extend(data[start:end])
        if len(self._into) > LONGEST_FIELD:
            raise Refused(400, f"{self._name} is too long.", param=self._name)

    def _part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._into.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def _word(name: Any) -> str:
    """A file's name as it may be shown: printable, no folders, at most 255 characters."""
    text = bytes(name).decode("utf-8", "replace")
    text = "".join(c for c in text if c.isprintable()).replace("\\", "/").rpartition("/")[2]
    return text[:255] or "file"
