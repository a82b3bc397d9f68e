"""Self-supervised pretraining and trustworthy evaluation for gray and color medical images.

The verbs of the command line, for Python:

>>> import ssl_mednet
>>> corpus = ssl_mednet.ingest(["scans", "more.zip"], "corpora/mine")                          # doctest: +SKIP
>>> run = ssl_mednet.pretrain("mae_gray.yaml", data="scans.zip", out="runs/mine")             # doctest: +SKIP
>>> results = ssl_mednet.evaluate([run.folder, "random:"], data="labelled.zip")               # doctest: +SKIP
>>> ssl_mednet.report([results.path.parent], "report.html")                                    # doctest: +SKIP
>>> backbone = ssl_mednet.load_backbone("gray-mednet-tiny")                                   # doctest: +SKIP
>>> fitted = ssl_mednet.finetune("gray-mednet-tiny", "labelled.zip", "models/mine")           # doctest: +SKIP
>>> predictions = ssl_mednet.predict(fitted.folder, ["new/", "scan.dcm"])                     # doctest: +SKIP
>>> ssl_mednet.export(fitted.folder, "onnx", "models/mine-onnx")                              # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_mednet.auditing.audit import audit
    from ssl_mednet.auditing.inspection import inspect
    from ssl_mednet.auditing.quality import curate
    from ssl_mednet.backbones.artifact import load_backbone, weights_path
    from ssl_mednet.classifying.fit import finetune
    from ssl_mednet.classifying.predict import predict
    from ssl_mednet.contact_sheet import preview
    from ssl_mednet.evaluation.run import evaluate
    from ssl_mednet.exporting.run import export
    from ssl_mednet.ingesting.run import ingest
    from ssl_mednet.methods.base import register_method
    from ssl_mednet.pretraining.run import pretrain
    from ssl_mednet.reporting.build import report

__version__ = "0.1.0"
__all__ = [
    "audit",
    "curate",
    "evaluate",
    "export",
    "finetune",
    "ingest",
    "inspect",
    "load_backbone",
    "predict",
    "pretrain",
    "preview",
    "register_method",
    "report",
    "weights_path",
]

# Imported when first used: `ssl-mednet --help` must not wait for torch.
_WHERE = {
    "audit": "ssl_mednet.auditing.audit",
    "curate": "ssl_mednet.auditing.quality",
    "evaluate": "ssl_mednet.evaluation.run",
    "export": "ssl_mednet.exporting.run",
    "finetune": "ssl_mednet.classifying.fit",
    "ingest": "ssl_mednet.ingesting.run",
    "inspect": "ssl_mednet.auditing.inspection",
    "load_backbone": "ssl_mednet.backbones.artifact",
    "predict": "ssl_mednet.classifying.predict",
    "pretrain": "ssl_mednet.pretraining.run",
    "preview": "ssl_mednet.contact_sheet",
    "register_method": "ssl_mednet.methods.base",
    "report": "ssl_mednet.reporting.build",
    "weights_path": "ssl_mednet.backbones.artifact",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
