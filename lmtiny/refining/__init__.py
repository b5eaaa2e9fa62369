"""Documents -> better documents: cleaning, filters, a quality score, decontamination, deduplication over all sources."""

from lmtiny.refining.refine import check, counts, refine
from lmtiny.refining.settings import STAGES, Plan, Settings, plan_of
from lmtiny.refining.tally import Tally

__all__ = ["STAGES", "Plan", "Settings", "Tally", "check", "counts", "plan_of", "refine"]
