"""What answers a flow's asks: one flow (`one`) or many (`many`), synchronously or asynchronously, whole or streamed.

All share `Run`, which sends answers into a flow and frees the KV caches that it no longer needs.
"""

from confcascade.drivers.many import AsyncBatcher, Batcher, arun_many, run_many
from confcascade.drivers.one import arun, astream, call_model, run, stream

__all__ = ["AsyncBatcher", "Batcher", "arun", "arun_many", "astream", "call_model", "run", "run_many", "stream"]
