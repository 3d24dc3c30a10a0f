"""A small S3 server."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Bucket(BaseHTTPRequestHandler):
    """HEAD and ranged GET of objects, and ListObjectsV2, over the files below `root`."""

    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        key = unquote(address.path).strip("/").partition("/")[2]
        if not key:
            self.reply(200, self.listing(parse_qs(address.query).get("prefix", [""])[0]))
        elif not (self.root / key).is_file():
            self.reply(404, b"")
        else:
            data = (self.root / key).read_bytes()
            wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(wanted[1]), min(int(wanted[2]), len(data) - 1)) if wanted else (0, len(data) - 1)
            self.reply(206 if wanted else 200, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

    def listing(self, prefix: str) -> bytes:
        files = sorted(path for path in self.root.rglob("*.parquet"))
        names = [(path.relative_to(self.root).as_posix(), path.stat().st_size) for path in files]
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{size}</Size></Contents>"
            for name, size in names
            if name.startswith(prefix)
        )
        count = found.count("<Key>")
        head = f"<KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{found}</ListBucketResult>".encode()

    def reply(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
