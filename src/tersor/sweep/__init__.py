"""Rate and distortion over many rates from one calibration, beside what people do without a codec."""

from .run import FILE, read, sweep

__all__ = ["FILE", "read", "sweep"]
