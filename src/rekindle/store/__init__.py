"""Bytes on disk: headers, ranged reads, streamed atomic writes, checksums."""
