"""The logit cache: a teacher's raw outputs on disk, computed once and used by every student."""

from pipelines.logits.ensemble import Ensemble
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints
from pipelines.logits.folder import Wanted
from pipelines.logits.identity import cache_identity, view_identity
from pipelines.logits.reader import LogitCache
from pipelines.logits.writer import CacheWriter

__all__ = [
    "CacheWriter",
    "Ensemble",
    "Fingerprinter",
    "Fingerprints",
    "LogitCache",
    "Wanted",
    "cache_identity",
    "view_identity",
]
