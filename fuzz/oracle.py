"""What must hold of any bytes whatsoever: they are decoded, or refused by a FormatError; quickly, within bounds.

Anything else is a finding: another exception (also a KernelError, which says "bug in tersor"), a warning, a
MemoryError below the process' limit, or more than SECONDS of processor time for a file of a few kilobytes.
"""

from __future__ import annotations

import io
import resource
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np

from tersor.decoder import load
from tersor.errors import FormatError
from tersor.limits import Limits
from tersor.streaming import stream

LIMITS = Limits(max_bytes=1 << 22, max_tensor_bytes=1 << 21, max_tensors=1000, max_sections=1000,
                max_manifest_bytes=1 << 20)
"""What a careful service would set for files of a few kilobytes."""
SECONDS = 10.0
"""Of processor time; far beyond what the slowest decode within LIMITS takes."""
ROOM = 1 << 30
"""Bytes of address space that a decode within LIMITS may take, a hundred times of what it should."""


class Finding(Exception):
    """A file that shows a bug in tersor."""


def limit_memory() -> None:
    """Let this process take ROOM more than it has now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))


def judge(data: bytes, limits: Limits = LIMITS) -> str:
    """Where and how the file was refused ("" where it was decoded); raises Finding."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with load(data, limits=limits, threads=1) as file:
                for name, array in file.read_all().items():
                    record = file.record(name)
                    if array.shape != record.shape:
                        raise Finding(f"{name}: {array.shape} was restored for {record.shape}")
                    if array.dtype == np.float32 and file.manifest.sections[record.section or 0].tool == 1 \
                            and record.section is not None and not np.isfinite(array).all():
                        raise Finding(f"{name}: a lossy tool restored a number that is not finite")
                repr(file), file.metadata, file.bits_per_weight
            if zlib.crc32(data) % 4 == 0:  # the same from a pipe, and into given memory
                with load(data, limits=limits, threads=1) as file:
                    given = {name: np.empty_like(array) for name, array in file.items()}
                    file.read_into(given)
                for name, array in stream(io.BytesIO(data), limits, threads=1):
                    if name in given and given[name].tobytes() != array.tobytes():
                        raise Finding(f"{name}: other numbers from a pipe than into given memory")
        verdict = ""
    except FormatError as error:
        frames = traceback.extract_tb(error.__traceback__)[-2:]
        places = [f"{Path(frame.filename).stem}.{frame.name}:{frame.lineno}" for frame in frames]
        verdict = " ".join([type(error).__name__, *places])
        try:
            list(stream(io.BytesIO(data), limits, threads=1))
            raise Finding(f"a pipe gave what was refused from memory: {verdict}")
        except FormatError:
            pass
        except Finding:
            raise
        except BaseException as other:
            raise Finding("".join(traceback.format_exception(other))) from other
    except Finding:
        raise
    except BaseException as error:
        raise Finding("".join(traceback.format_exception(error))) from error
    if time.process_time() - start > SECONDS:
        raise Finding(f"{len(data):,} bytes took {time.process_time() - start:.1f} s: {verdict or 'decoded'}")
    return verdict
