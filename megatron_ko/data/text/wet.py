"""WET: the text that a crawl extracted, as WARC records of the type "conversion" (ISO 28500, section 6.8)."""

from collections.abc import Iterator

from megatron_ko.data.text.records import BLOCK_BYTES, Block, check_record
from megatron_ko.data.text.streams import Stream
from megatron_ko.errors import DataError

_END_OF_HEADER = b"\r\n\r\n"
_LONGEST_HEADER = 1 << 16
_FIELDS = {
    "warc-target-uri": "url",
    "warc-date": "date",
    "warc-record-id": "id",
    "warc-identified-content-language": "languages",
}


def wet_blocks(stream: Stream) -> Iterator[Block]:
    """Blocks of whole records.

    Raises:
        DataError: a record does not begin or end where the one before says.
    """
    source = str(stream.path)
    held, first, number = b"", 1, 1
    payload = bytearray()
    while True:
        header, held = _header(stream, held, number)
        if not header:
            break
        length = _content_length(source, number, header)
        check_record(source, number, length)
        while len(held) < length:
            content = stream.read(max(BLOCK_BYTES, length - len(held)))
            if not content:
                raise _damaged(source, number, f"the file ends inside a record of {length:,} bytes")
            held += content
        payload += header + held[:length] + b"\r\n\r\n"
        held = held[length:]
        number += 1
        if len(payload) >= BLOCK_BYTES:
            yield Block(source, "wet", first, bytes(payload), stream.consumed())
            first, payload = number, bytearray()
    if payload:
        yield Block(source, "wet", first, bytes(payload), stream.consumed())


def wet_records(payload: bytes) -> Iterator[tuple[dict[str, object], bytes | None]]:
    """Fields and text of every record of a block; None for a record that is not the text of a page."""
    start = 0
    while start < len(payload):
        end = payload.index(_END_OF_HEADER, start)
        header = _parsed(payload[start:end])
        start = end + len(_END_OF_HEADER)
        length = int(header["content-length"])
        content = payload[start : start + length] if header.get("warc-type") == "conversion" else None
        yield {name: header[key] for key, name in _FIELDS.items() if key in header}, content
        start += length + len(_END_OF_HEADER)


def _header(stream: Stream, held: bytes, number: int) -> tuple[bytes, bytes]:
    """The next header with its end, and what was read beyond; empty at the end of the file."""
    while True:
        held = held.lstrip(b"\r\n")
        end = held.find(_END_OF_HEADER)
        if end >= 0:
            end += len(_END_OF_HEADER)
            if not held.startswith(b"WARC/"):
                raise _damaged(str(stream.path), number, f"{held[:40]!r}")
            return held[:end], held[end:]
        content = stream.read(BLOCK_BYTES)
        if not content or len(held) > _LONGEST_HEADER:
            if held:
                raise _damaged(str(stream.path), number, f"{held[:40]!r} without the end of a header")
            return b"", b""
        held += content


def _content_length(source: str, number: int, header: bytes) -> int:
    value = _parsed(header).get("content-length", "")
    if not value.isdecimal():
        raise _damaged(source, number, f"Content-Length {value!r}")
    return int(value)


def _parsed(header: bytes) -> dict[str, str]:
    lines = header.decode("utf-8", errors="replace").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _damaged(source: str, number: int, got: str) -> DataError:
    return DataError(
        f"{source} is no WET file, or is damaged",
        got=f"{got} at record {number}",
        expected="WARC/1.0 records of extracted text",
        remedy="download it again; of .warc files, give the extracted text (.wet)",
    )
