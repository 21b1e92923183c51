"""The blocks of requests in every block table: found, admitted, grown, named and given back.

Source: ``KVCacheManager`` of vllm/v1/core/kv_cache_manager.py, vLLM 0.32.
"""

from __future__ import annotations

from harness.simulate.blocks import Blocks
from harness.simulate.job import Job
from harness.simulate.limits import Limits
from harness.simulate.tables import Row, Tables


class KvCacheManager:
    """The rows of requests on a ``pool``."""

    def __init__(self, limits: Limits, pool: Blocks) -> None:
        self.limits, self.pool = limits, pool
        tables = limits.block_tables
        self.tables = Tables(tables, drop_last=limits.speculation.drops_block)
        self.most = [t.most(limits.in_flight_tokens, limits.max_model_len) for t in tables]

    def found(self, job: Job) -> tuple[list[Row], int]:
        """The blocks of each table that are there of ``job``, and how many tokens they hold."""
        if not self.limits.enable_prefix_caching:
            return [[] for _ in job.rows], 0
        of, find = job.names.of, self.pool.find
        rows, found, job.junction = self.tables.prefix(lambda t, n: find((of(n), n, t)), job.tokens - 1)
        return rows, found

    def admit(self, job: Job, found_rows: list[Row], found: int, new: int, leave: int) -> bool:
        """Give ``job`` what was found and the blocks for ``new`` tokens more, and ``leave`` some free; or nothing."""
        limits, free = self.limits, self.pool.free - leave
        slots = min(found + new + self.limits.speculation.lookahead, limits.max_model_len)
        wanted = self._wanted(found_rows, found, slots, capped=False)
        if limits.scheduler_reserve_full_isl:
            wanted = max(wanted, self._wanted(found_rows, found, min(job.tokens, limits.max_model_len), capped=True))
        if wanted > free:
            return False
        for t, (table, row) in enumerate(zip(self.tables.all, found_rows, strict=True)):
            if not found:
                break
            left = table.left_behind(found)
            self.pool.hold(row[left:])
            job.rows[t] = [*(None for _ in range(left)), *row[left:]]
            job.named[t] = len(job.rows[t])
        self._take(job, slots)
        self.name(job, min(found + new, job.tokens))
        return True

    def _wanted(self, found_rows: list[Row], found: int, tokens: int, *, capped: bool) -> int:
        """Free blocks that an admission takes: new ones, and those found that nobody holds."""
        wanted = 0
        for table, most, row in zip(self.tables.all, self.most, found_rows, strict=True):
            blocks, left = table.blocks(tokens), table.left_behind(found)
            if capped and most is not None:
                blocks = min(blocks, most)
            wanted += max(blocks - max(left, len(row)), 0)
            wanted += sum(block is not None and not block.holders for block in row[left:])
        return wanted

    def grow(self, job: Job, new: int) -> bool:
        """Blocks for ``new`` tokens more of a running request, or nothing; what it needs no longer is freed."""
        slots = min(job.computed + new + self.limits.speculation.lookahead, self.limits.max_model_len)
        wanted, settled = 0, job.computed - job.in_flight
        for table, row in zip(self.tables.all, job.rows, strict=True):
            left, gone = min(table.left_behind(settled), len(row)), []
            for k in reversed(range(left)):
                if row[k] is None:
                    break
                gone.append(row[k])
                row[k] = None
            self.pool.release(gone)
            wanted += max(table.blocks(slots) - len(row), 0)
        if wanted > self.pool.free:
            return False
        self._take(job, slots)
        self.name(job, min(job.computed + new, job.tokens))
        return True

    def _take(self, job: Job, slots: int) -> None:
        for table, row in zip(self.tables.all, job.rows, strict=True):
            row += self.pool.take(max(table.blocks(slots) - len(row), 0))

    def name(self, job: Job, tokens: int) -> None:
        """The first ``tokens`` tokens have KV: their whole blocks can be found."""
        if not self.limits.enable_prefix_caching:
            return
        if len(job.rows) > 1:
            tokens -= tokens % self.tables.align
        ends = (job.prompt - 1, job.junction) if job.junction else (job.prompt - 1,)
        for t, (table, row) in enumerate(zip(self.tables.all, job.rows, strict=True)):
            for k in range(job.named[t], tokens // table.block_size):
                block, end = row[k], (k + 1) * table.block_size
                if block is not None and self.tables.kept(table, k, ends):
                    self.pool.name(block, (job.names.of(end), end, t))
                job.named[t] = k + 1

    def release(self, job: Job) -> None:
        """Give back all that ``job`` holds."""
        for row in job.rows:
            self.pool.release(reversed(row))
            row.clear()
        job.named = [0] * len(job.rows)
