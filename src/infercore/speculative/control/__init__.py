"""How much to draft: `cost_curve.py` (what rows cost), `survival.py` (what drafts are worth), `controller.py`.

`acceptance.py` counts what became of drafts, for statistics.
"""

from infercore.speculative.control.acceptance import Acceptance
from infercore.speculative.control.controller import Decisions, SpeedController
from infercore.speculative.control.cost_curve import CostCurve
from infercore.speculative.control.survival import Survival

__all__ = ["Acceptance", "CostCurve", "Decisions", "SpeedController", "Survival"]
