"""Processes under another one, found through /proc."""

from pathlib import Path


def descendants(pid):
    """Returns the pids of all processes under ``pid``."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything; the parent follows it and the state.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


def training_workers(pid):
    """Returns the pids of Ray Train's workers under ``pid``."""
    return [one for one in descendants(pid) if "TrainWorker" in _title(one)]


def _title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
