"""A tally as a report: what came in, what every stage dropped and changed, what is left; all of it adds up."""

from typing import TypedDict

from megatron_ko.data.clean.tally import Amount, AmountJson, Tally


class ChangeCount(TypedDict):
    """Documents that a stage changed for one reason, and how often it applied in them."""

    documents: int
    times: int


class Shrunk(TypedDict):
    """What the changes of a stage took away from texts."""

    characters: int
    bytes: int


# Not written as classes, because "in" is a keyword of Python.
StageReport = TypedDict(
    "StageReport",
    {
        "stage": str,
        "in": AmountJson,
        "dropped": dict[str, AmountJson],
        "changed": dict[str, ChangeCount],
        "changed_documents": int,
        "shrunk": Shrunk,
        "out": AmountJson,
    },
)
CleanReport = TypedDict(
    "CleanReport",
    {
        "in": AmountJson,
        "out": AmountJson,
        "rejected": dict[str, int],
        "kept": dict[str, float],
        "notes": dict[str, dict[str, int]],
        "stages": list[StageReport],
    },
)


def report_of(tally: Tally) -> CleanReport:
    """The report of a tally, as the JSON that is written.

    ``in`` and the rejected records together are all records that were read. ``in`` is ``out`` plus all that was
    dropped; in characters and bytes, plus what the changes of texts took away.
    """
    left = tally.left()
    stages: list[StageReport] = []
    for number, (name, stage) in enumerate(tally.stages.items()):
        shrunk = stage.before.plus(stage.after, -1)
        stages.append(
            {
                "stage": name,
                "in": left[number].to_json(),
                "dropped": {reason: amount.to_json() for reason, amount in sorted(stage.dropped.items())},
                "changed": {
                    reason: {"documents": documents, "times": stage.occurrences[reason]}
                    for reason, documents in sorted(stage.changed.items())
                },
                "changed_documents": stage.before.documents,
                "shrunk": {"characters": shrunk.characters, "bytes": shrunk.bytes},
                "out": left[number + 1].to_json(),
            }
        )
    return {
        "in": tally.taken.to_json(),
        "out": tally.kept.to_json(),
        "rejected": dict(sorted(tally.rejected.items())),
        "kept": _shares(tally.kept, tally.taken),
        "notes": {name: dict(sorted(counts.items())) for name, counts in sorted(tally.notes.items())},
        "stages": stages,
    }


def _shares(part: Amount, whole: Amount) -> dict[str, float]:
    pairs = ((name, getattr(part, name), getattr(whole, name)) for name in ("documents", "characters", "bytes"))
    return {name: round(some / all_, 4) if all_ else 0.0 for name, some, all_ in pairs}
