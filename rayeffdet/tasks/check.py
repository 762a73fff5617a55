"""check: spec, versions, data, cluster and a few real steps, before a run is started."""

from typing import Any

from rayeffdet import storage
from rayeffdet.errors import RunError
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.findings import Findings
from rayeffdet.train.versions import installed_versions, version_problems


def run(context: Context) -> dict[str, Any]:
    """Says what would run on what, and every problem; returns the numbers.

    Raises:
        UserError: All errors at once, of the kind of the first: versions, spec, data, cluster,
            then what a real step finds.
    """
    console, journal = context.console, context.journal("check")
    findings = Findings(facts={"versions": installed_versions()})
    versions = findings.facts["versions"].items()
    console.rows([("versions", " · ".join(f"{name} {version}" for name, version in versions))])
    if problems := version_problems():
        findings.errors.append(RunError(*problems))
    else:
        # The rest imports torchvision, which may not be possible where the versions do not fit.
        from rayeffdet.tasks.inspection import inspect_run

        inspect_run(context, findings)
    storage.write_json(journal.path("report.json"), findings.to_dict())
    for text in findings.warnings:
        console.notice(text)
    summary = f"errors: {len(findings.problems)}, warnings: {len(findings.warnings)}"
    console.say(f"check    {summary}; all of it is in {journal.path('report.json')}")
    journal.log(console.take_log())
    findings.raise_errors()
    journal.status("SUCCESS", f"Check finished: {summary}.")
    return findings.to_dict()
