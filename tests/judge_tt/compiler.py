"""Takes the kernel compiler out of jax-tt-plugin for the ttnn of this Python: python compiler.py LIBTT_SO.

The library carries a tar archive of the vendor's runtime files, compressed by zstd. Its compiler has no libraries built
for Wormhole, which gets those of the plain instruction set.
"""

import sys
import tarfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pyarrow

FRAME = b"\x28\xb5\x2f\xfd"
WANTED = "runtime/sfpi/"


def unpack(library, target):
    """Extracts what is WANTED from the first archive in `library` that has it, and returns the number of files."""
    data = library.read_bytes()
    offset = data.find(FRAME)
    while offset >= 0:
        found = 0
        stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(memoryview(data)[offset:]), "zstd")
        # Other data may begin with the same four bytes, and others follow the archive.
        with suppress(OSError, tarfile.TarError), tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.name.startswith(WANTED):
                    archive.extract(member, target, filter="data")
                    found += 1
        if found:
            return found
        offset = data.find(FRAME, offset + 1)
    return 0


if __name__ == "__main__":
    root = Path(find_spec("ttnn").origin).parent
    if not unpack(Path(sys.argv[1]), root):
        sys.exit(f"{sys.argv[1]} has no kernel compiler in it")
    for blackhole in (root / WANTED / "compiler").rglob("bh-ilp32"):
        (blackhole.parent / "wh-ilp32").symlink_to(".")
