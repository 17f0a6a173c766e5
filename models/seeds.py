"""Random numbers as functions of a seed and a place: no state, so that what is sent again draws the same."""

from __future__ import annotations

import numpy as np


def noise_of(seed: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64[n] in 0 .. 2^62 - 1: SplitMix64 (Steele et al. 2014) of a uint64 seed and a token count, two rounds."""
    with np.errstate(over="ignore"):
        x = _mix(seed.astype(np.uint64)) + length.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(x) >> np.uint64(2)).astype(np.int64)


def uniform(seed: np.ndarray, place: np.ndarray, stream: int) -> np.ndarray:
    """float64[n] in [0, 1): one number for each (seed, place); streams are independent of each other."""
    with np.errstate(over="ignore"):
        shifted = seed.astype(np.uint64) + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03)
    return (noise_of(shifted, place) >> 9).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
