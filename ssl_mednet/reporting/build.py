"""The verb: folders in, report.html and tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_mednet import __version__
from ssl_mednet.errors import UserError
from ssl_mednet.files import check_file, replacing
from ssl_mednet.reporting.html import render
from ssl_mednet.reporting.load import load_study
from ssl_mednet.reporting.page import build_page, title
from ssl_mednet.reporting.references import beside, load_references
from ssl_mednet.reporting.tables import as_csv, latex, markdown
from ssl_mednet.reporting.tasks import sort_into_tasks


def report(folders: Sequence[str | Path], out: str | Path = "report.html", tables: bool = True) -> list[Path]:
    """Write a report on results and pretraining runs.

    Args:
        folders: results folders (they hold ``results.json``) and pretraining run folders (``recipe.yaml``), in any
            number and order; results in ``results/`` of a run folder are included. Rows that several folders share are
            shown once.
        out: the page, one ``.html`` file that needs nothing else.
        tables: write the tables beside it too: ``.md``, ``.csv`` and ``.tex`` of the same name.

    Returns:
        The files written, the page first.

    Raises:
        UserError: a folder holds neither, or a file in it is broken; what is merely missing is said in the report.
    """
    path = Path(out).expanduser()
    if path.suffix != ".html":
        raise UserError(f"{path}: a report is an .html page", "choose --out report.html")
    check_file(path)
    study = load_study([folders] if isinstance(folders, str | Path) else folders)
    tasks = sort_into_tasks(study)
    references = load_references()
    published = {task.anchor: beside(references, task.rows) for task in tasks}
    page = build_page(study, tasks, published)
    texts = {path: render(page, __version__)}
    if tables and tasks:
        named = {task.name: published[task.anchor] for task in tasks}
        texts[path.with_suffix(".md")] = markdown(title(tasks, study.runs), tasks, named, page.notes)
        texts[path.with_suffix(".csv")] = as_csv(tasks)
        texts[path.with_suffix(".tex")] = latex(tasks)
    for target, text in texts.items():
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)
