"""Every kind of stage, by its name in pipeline files."""

from megatron_ko.data.clean import (
    blocklist,
    boilerplate,
    c4,
    fineweb,
    gopher,
    hangul,
    html,
    language,
    length,
    lines,
    personal,
    quality,
    repetition,
    speech_level,
    unicode,
    urls,
)
from megatron_ko.data.clean.stage import StageKind

STAGES: dict[str, StageKind] = {
    "unicode": unicode.KIND,
    "html": html.KIND,
    "boilerplate": boilerplate.KIND,
    "lines": lines.KIND,
    "jamo_runs": hangul.RUNS,
    "hangul": hangul.KIND,
    "length": length.KIND,
    "blocklist": blocklist.KIND,
    "gopher_repetition": repetition.KIND,
    "gopher": gopher.KIND,
    "fineweb": fineweb.KIND,
    "c4": c4.KIND,
    "personal": personal.KIND,
    "speech_level": speech_level.KIND,
    "language": language.KIND,
    "urls": urls.KIND,
    "quality_classifier": quality.QUALITY,
    "perplexity": quality.PERPLEXITY,
}
