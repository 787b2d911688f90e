"""How much to draft: `cost_curve.py` (what rows cost), `survival.py` (what drafts are worth), `controller.py`."""

from infercore.speculative.control.controller import Decisions, SpeedController
from infercore.speculative.control.cost_curve import CostCurve
from infercore.speculative.control.survival import Survival

__all__ = ["CostCurve", "Decisions", "SpeedController", "Survival"]
