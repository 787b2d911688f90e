"""Where programs run: our engine, an OpenAI-compatible server, or a recording.

    EngineBackend(engine)                                      # infercore.hf.Engine: everything, exactly
    HttpBackend("http://localhost:30000/v1", model="...")      # SGLang, vLLM and others; needs httpx
    RecordingBackend(backend, "run.json"); ReplayingBackend("run.json")              # tests without a model

All keep the laws of `infercore.lang.types.Backend`.
"""

from infercore.lang.backends.engine import EngineBackend
from infercore.lang.backends.http import HttpBackend
from infercore.lang.backends.recording import RecordingBackend, ReplayingBackend

__all__ = ["EngineBackend", "HttpBackend", "RecordingBackend", "ReplayingBackend"]
