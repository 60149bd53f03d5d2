"""For tests, ours and others': a model that follows a script, and checks that hold for every model and signal."""

from confcascade.testing.contract import check_model
from confcascade.testing.records import same_record
from confcascade.testing.scripted import Reply, ScriptedModel

__all__ = ["Reply", "ScriptedModel", "check_model", "same_record"]
