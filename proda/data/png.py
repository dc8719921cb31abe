"""PNG files reduced to what decides their pixels, whose checksums are compared.

Pillow does not compare the checksums of pixels, and refuses a file for the size of its metadata alone.
"""

import os
import struct
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_SHOWN_BY = (b"sBIT", b"eXIf")  # what also decides how an image is shown: significant bits, orientation


def without_metadata(file: IO[bytes], *, pixels: bool = True) -> bytes:
    """A PNG with the parts alone that decide its pixels and how they are shown; without ``pixels``, its header.

    Text, color profiles and the like are left out, whatever their size and state, and so is EXIF data whose checksum
    differs. What follows the image is not read.

    Raises ValueError if a part that decides the pixels is incomplete, or its checksum differs.
    """
    parts, image = [SIGNATURE], list[bytes]()
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        decides_pixels = kind[:1].isupper() or kind == b"tRNS"
        if kind == b"IEND":
            break
        if not (decides_pixels or kind in _SHOWN_BY) or (kind == b"IDAT" and not pixels):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        body = file.read(length + 4)  # with the checksum
        if len(body) == length + 4 and zlib.crc32(body[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:], "big"):
            (image if kind == b"IDAT" else parts).extend((head, body))
        elif decides_pixels:
            what = "its checksum differs" if len(body) == length + 4 else "the file ends too early"
            raise ValueError(f"part {kind.decode('latin1')}: {what}")
    return b"".join((*parts, *image, _END))
