"""The logit cache: a teacher's raw outputs on disk, computed once and used by every student."""

from pipelines.logits.cache import LogitCache
from pipelines.logits.writer import CacheWriter

__all__ = ["CacheWriter", "LogitCache"]
