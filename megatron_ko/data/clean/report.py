"""A tally as a report: what came in, what every stage dropped and changed, what is left; all of it adds up."""

from dataclasses import asdict
from typing import Any

from megatron_ko.data.clean.tally import Amount, Tally


def report_of(tally: Tally) -> dict[str, Any]:
    """As JSON values.

    ``in`` + rejected records are the records read; ``in`` = ``out`` + all that was dropped, in documents, and in
    characters and bytes with what the changes of texts took away.
    """
    left = tally.left()
    stages = []
    for number, (name, stage) in enumerate(tally.stages.items()):
        shrunk = stage.before.plus(stage.after, -1)
        stages.append(
            {
                "stage": name,
                "in": asdict(left[number]),
                "dropped": {reason: asdict(amount) for reason, amount in sorted(stage.dropped.items())},
                "changed": {
                    reason: {"documents": documents, "times": stage.occurrences[reason]}
                    for reason, documents in sorted(stage.changed.items())
                },
                "changed_documents": stage.before.documents,
                "shrunk": {"characters": shrunk.characters, "bytes": shrunk.bytes},
                "out": asdict(left[number + 1]),
            }
        )
    return {
        "in": asdict(tally.taken),
        "out": asdict(tally.kept),
        "rejected": dict(sorted(tally.rejected.items())),
        "kept": _shares(tally.kept, tally.taken),
        "notes": {name: dict(sorted(counts.items())) for name, counts in sorted(tally.notes.items())},
        "stages": stages,
    }


def _shares(part: Amount, whole: Amount) -> dict[str, float]:
    pairs = ((name, getattr(part, name), getattr(whole, name)) for name in ("documents", "characters", "bytes"))
    return {name: round(some / all_, 4) if all_ else 0.0 for name, some, all_ in pairs}
