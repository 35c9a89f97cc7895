"""Cuts off shared objects what no loader reads: symbols, debugging data, the table of sections.

Wheels often carry ten times the bytes that run, and a base without binutils has no `strip`. What is loaded is described
by the program headers alone, so a file may end where the last of them does.

usage: strip_symbols.py DIRECTORY      (64-bit ELF, as the supported machines have; anything else is left as it is)
Source: System V ABI, "ELF header" and "Program header".
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

HEADER_BYTES = 64
SECTIONS_AT, PROGRAMS_AT = 40, 32  # e_shoff, e_phoff
COUNTS_AT = 58  # e_shentsize, e_shnum, e_shstrndx


def strip(path: Path) -> int:
    """Shorten one file in place; the number of bytes that went."""
    content = path.read_bytes()
    if len(content) < HEADER_BYTES or content[:5] != b"\x7fELF\x02":
        return 0
    order = "<" if content[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", content, PROGRAMS_AT)
    size, count = struct.unpack_from(f"{order}HH", content, 54)
    end: int = table + size * count
    for index in range(count):
        offset, length = (struct.unpack_from(f"{order}Q", content, table + index * size + at)[0] for at in (8, 32))
        end = max(end, offset + length)
    if end >= len(content):
        return 0
    head = bytearray(content[:end])
    struct.pack_into(f"{order}Q", head, SECTIONS_AT, 0)
    struct.pack_into(f"{order}HHH", head, COUNTS_AT, 0, 0, 0)
    path.write_bytes(head)
    return len(content) - end


if __name__ == "__main__":
    went = sum(strip(path) for path in sorted(Path(sys.argv[1]).rglob("*.so*")) if path.is_file())
    print(f"stripped {went / 1e6:.1f} MB of symbols")
