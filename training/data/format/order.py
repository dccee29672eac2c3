"""Orders of rows as pure functions of a seed, equal on every machine and with every library version."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


class Purpose(enum.IntEnum):
    """The purpose of an order; different purposes have independent orders, also for equal seeds."""

    EPOCH = 0
    SHUFFLE = 1
    SPLIT = 2
    BLOCK = 3


def permutation(count: int, seed: int, purpose: Purpose, number: int = 0) -> npt.NDArray[np.int64]:
    """Return a uniformly random order of 0..count-1: the ranks of `count` raw 64-bit outputs of Philox, keyed by the arguments.

    NumPy guarantees that the raw stream of its bit generators never changes; it does not guarantee that of its `permutation`.

    Args:
        seed: 0 up to 2^64.
        number: Number of the order among those for this purpose, for instance the epoch; 0 up to 2^56.
    """
    raw = np.random.Philox(key=np.array([seed, (purpose << 56) + number], dtype=np.uint64)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


class GlobalOrder:
    """Each epoch is a permutation of all rows; epoch e covers the positions e * num_rows up to (e + 1) * num_rows."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self._epoch = functools.lru_cache(maxsize=2)(lambda epoch: permutation(num_rows, seed, Purpose.EPOCH, epoch))

    def rows(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row at each position of the endless sequence of epochs."""
        rows = np.empty_like(positions)
        epochs, within = np.divmod(positions, self.num_rows)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._epoch(int(epoch))[within[chosen]]
        return rows


class BlockOrder:
    """Each epoch visits each row once, in an order that reads the row groups of the shards one block after another.

    The row groups are permuted, cut into blocks, and the rows of each block permuted. The rows were shuffled over the
    whole data set when it was prepared, so a block is a random sample of it.
    """

    def __init__(self, group_sizes: Sequence[int], seed: int, *, groups_per_block: int) -> None:
        """Set the rows of each row group, the seed, and the number of row groups in a block."""
        self.num_rows = sum(group_sizes)
        self.num_blocks = -(-len(group_sizes) // groups_per_block)
        self._sizes = np.asarray(group_sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed = seed
        self._groups_per_block = groups_per_block
        self._groups = functools.lru_cache(maxsize=4)(lambda epoch: permutation(len(group_sizes), seed, Purpose.EPOCH, epoch))
        self._block = functools.lru_cache(maxsize=4)(self._block_rows)

    def groups(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        """Return the row groups of a block."""
        return self._groups(epoch)[block * self._groups_per_block : (block + 1) * self._groups_per_block]

    def rows(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row at each position of the endless sequence of epochs."""
        rows = np.empty_like(positions)
        for epoch, block, chosen, offset in self._blocks_of(positions):
            rows[chosen] = self._block(epoch, block)[offset]
        return rows

    def last_block(self, positions: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Return epoch and block of the last of these positions."""
        return max((epoch, block) for epoch, block, _, _ in self._blocks_of(positions))

    def next_block(self, epoch: int, block: int) -> tuple[int, int]:
        """Return the epoch and block that follow."""
        return (epoch, block + 1) if block + 1 < self.num_blocks else (epoch + 1, 0)

    def _blocks_of(self, positions: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
        epochs, within = np.divmod(positions, self.num_rows)
        for epoch in np.unique(epochs):
            order = self._groups(int(epoch))
            block_starts = np.concatenate([[0], np.cumsum(self._sizes[order])])[:: self._groups_per_block]
            blocks = np.searchsorted(block_starts, within, side="right") - 1
            for block in np.unique(blocks[epochs == epoch]):
                chosen = (epochs == epoch) & (blocks == block)
                yield int(epoch), int(block), chosen, within[chosen] - block_starts[block]

    def _block_rows(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        rows = np.concatenate([np.arange(self._starts[group], self._starts[group + 1]) for group in self.groups(epoch, block)])
        return rows[permutation(len(rows), self._seed, Purpose.BLOCK, epoch * self.num_blocks + block)]
