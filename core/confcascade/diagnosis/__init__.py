"""What each stage of a cascade can do, found out by asking it a few tokens, and what the cascade will therefore do.

`probing` asks, `abilities` says what was seen, `findings` what is wrong with it, `forecast` what the cascade will do;
`diagnose` plays it all. What adapters know, refuse and log is taken from them, and signals judge as they do live:
nothing is decided twice.
"""

from confcascade.diagnosis.abilities import Ability
from confcascade.diagnosis.diagnose import Diagnosis, StageDiagnosis, diagnose
from confcascade.diagnosis.findings import Finding

__all__ = ["Ability", "Diagnosis", "Finding", "StageDiagnosis", "diagnose"]
