"""Documents -> better documents: cleaning, filters, a quality score, decontamination, deduplication over all sources."""

from lmtiny.refining.refine import counts, refine
from lmtiny.refining.settings import Plan, Settings, plan_of
from lmtiny.refining.tally import Tally

__all__ = ["Plan", "Settings", "Tally", "counts", "plan_of", "refine"]
