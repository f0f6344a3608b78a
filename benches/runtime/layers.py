"""Random layers and how they are timed, the same in every process that takes part. Needs numpy alone, of any age."""

import statistics
import time

import numpy as np

# Copies of a layer together, over the last-level cache: as `sparsegpt bench` has it.
CACHES = 4
# Last-level cache where the system does not tell.
USUAL_CACHE = 32 << 20
# Products of a turn at least, whatever they take.
LEAST_RUNS = 3


def weights(rows, cols, zeros):
    """f32, rows x columns = output x input features; each is zero with probability `zeros`."""
    random = np.random.default_rng([rows, cols])
    weight = random.standard_normal((rows, cols), dtype=np.float32)
    weight[random.random((rows, cols), dtype=np.float32) < zeros] = 0
    return weight


def inputs(tokens, cols):
    """f32, tokens x columns."""
    return np.random.default_rng([tokens, cols]).standard_normal((tokens, cols), dtype=np.float32)


def last_level_cache():
    """Bytes."""
    for index in reversed(range(8)):
        try:
            with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size") as file:
                return int(file.read().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return USUAL_CACHE


def copies(size):
    """How many layers of so many bytes are four times the last-level cache."""
    return -(-CACHES * last_level_cache() // max(size, 1))


def deviation(found, expected):
    """The largest difference over the largest value."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


class Cycle:
    """Products that take the same work on weights of their own, taken in turn."""

    def __init__(self, products):
        self.products, self.next = products, 0

    def run(self):
        product = self.products[self.next % len(self.products)]
        self.next += 1
        start = time.perf_counter()
        product()
        return time.perf_counter() - start

    def turn(self, seconds, least=LEAST_RUNS):
        """The median of as many products as fit."""
        times, end = [], time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            times.append(self.run())
        return statistics.median(times)
