"""The report as one HTML page that needs nothing else: tables, bars in SVG, samples. Every text in it is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmtiny import console
from lmtiny.refining.tally import SCORE_BINS

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } pre { white-space: pre-wrap; background: #f6f6f4; padding: .7em; margin: .3em 0 1em; }
svg { display: block; margin: .5em 0 1.5em; } figcaption { font-weight: 600; } summary { cursor: pointer; }
"""
# Samples are other people's text: the page may load and run nothing, whatever stands in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Mapping[str, Any]) -> str:
    """Returns the page for a report of `report.collect`."""
    title = f"Corpus {report['corpus']}"
    sections = [
        _stages(report),
        _splits(report["splits"]),
        _reasons(report),
        _evaluation(report["evaluation"]),
        _mixture(report["mixture"]),
        _histograms("Length of the documents", "bytes, from", report["lengths"], _power),
        _histograms("Quality score", "score, from", report["scores"], lambda place: f"{place / SCORE_BINS:.2f}"),
        _samples(report["samples"]),
        _settings(report["settings"]),
    ]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{_safe(title)}</title>'
    body = "\n".join((f"<h1>{_safe(title)}</h1>", *sections))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{body}\n</body></html>\n'


def _safe(value: object) -> str:
    return html.escape(str(value))


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_safe(one)}</th>" for one in headers)
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _stages(report: Mapping[str, Any]) -> str:
    sources = list(report["stages"][0]["sources"])
    text = ["<h2>Documents and bytes after each stage</h2>"]
    for place, what in enumerate(("documents", "bytes")):
        rows = []
        for step in report["stages"]:
            counts = [step["sources"].get(source, [0, 0])[place] for source in sources]
            first = sum(report["stages"][0]["sources"][source][place] for source in sources) or 1
            rows.append((step["stage"], *(f"{count:,}" for count in counts), f"{sum(counts):,}", f"{100 * sum(counts) / first:.1f} %"))
        text.append(_table((what, *sources, "all", "of what was read"), rows))
    note = "What is held out for validation is counted with its source. What stages took out of documents that stay is told below."
    return "\n".join([*text, _note(note)])


def _splits(splits: Mapping[str, Mapping[str, int]]) -> str:
    names = list(next(iter(splits.values())))
    rows = [(split, *(f"{of[name]:,}" for name in names)) for split, of in splits.items()]
    return "<h2>To train on, and to validate with</h2>\n" + _table(("", *names), rows)


def _note(text: str) -> str:
    return f"<p>{_safe(text)}</p>"


def _reasons(report: Mapping[str, Any]) -> str:
    rows = [
        (stage, source, reason, f"{documents:,}", f"{num_bytes:,}")
        for stage, sources in report["dropped"].items()
        for source, reasons in sources.items()
        for reason, (documents, num_bytes) in sorted(reasons.items(), key=lambda item: -item[1][0])
    ]
    text = "<h2>Dropped, by reason</h2>\n" + _table(("stage", "source", "reason", "documents", "bytes"), rows)
    text += _note("Reasons of filters are datatrove's names of the rule that a document broke: docs/refining.md has the rules.")
    changed = [
        (stage, source, f"{documents:,}", *(f"{num_bytes:,}" for num_bytes in taken_out))  # none in a report of before
        for stage, sources in report["changed"].items()
        for source, (documents, *taken_out) in sources.items()
    ]
    if changed:
        text += "<h2>Altered by cleaning and filters</h2>\n" + _table(("stage", "source", "documents", "bytes taken out"), changed)
    return text


def _evaluation(sets: Mapping[str, Sequence[int]]) -> str:
    if not sets:
        return ""
    rows = [(name, f"{read:,}", f"{short:,}") for name, (read, short) in sets.items()]
    return "<h2>Evaluation sets</h2>\n" + _table(("file", "items", "of these too short to be found"), rows)


def _mixture(mixture: Mapping[str, Any]) -> str:
    rows = [
        (source, f"{of['tokens']:,}", *("" if of[name] is None else f"{100 * of[name]:.2f} %" for name in ("by_size", "wanted", "got")))
        for source, of in mixture.items()
    ]
    bars = [(source, of["got"], of["wanted"]) for source, of in mixture.items()]
    note = (
        "By size: the share of all tokens that there are. Wanted: the weights of the config, empty without any. Got: the share of what"
        " a run of this config is trained on."
    )
    table = _table(("source", "tokens", "by size", "wanted", "got"), rows)
    return "<h2>Mixture of the training tokens</h2>\n" + table + _note(note) + _shares(bars)


def _shares(bars: Sequence[tuple[str, float, float | None]]) -> str:
    """Returns a bar for each share, and a line where it was wanted."""
    lines = []
    for number, (source, got, wanted) in enumerate(bars):
        top = 22 * number
        lines.append(f'<text x="0" y="{top + 14}" font-size="12">{_safe(source[:34])}</text>')
        lines.append(f'<rect x="260" y="{top + 2}" width="{600 * got:.1f}" height="16" fill="#4878a8"/>')
        if wanted is not None:
            lines.append(f'<rect x="{260 + 600 * wanted - 1:.1f}" y="{top}" width="2" height="20" fill="#222"/>')
    return f'<svg width="880" height="{22 * len(bars)}" role="img">{"".join(lines)}</svg>'


def _histograms(title: str, axis: str, counts: Mapping[str, Sequence[int]], label: Any) -> str:
    if not counts:
        return ""
    filled = [place for of in counts.values() for place, count in enumerate(of) if count] or [0]
    places = range(min(filled), max(filled) + 1)
    labels = [label(place) for place in places]
    text = "".join(_histogram(source, axis, [of[place] for place in places], labels) for source, of in counts.items())
    return f"<h2>{_safe(title)}</h2>\n{text}"


def _histogram(source: str, axis: str, counts: Sequence[int], labels: Sequence[str]) -> str:
    left, width, high, most = 20, max(24, 840 // len(counts)), 110, max(*counts, 1)
    right = left + width * len(counts)
    lines = [
        f'<text x="{(left + right) // 2}" y="{high + 44}" font-size="11" text-anchor="middle">{_safe(axis)}</text>',
        f'<text transform="translate(11 {14 + high // 2}) rotate(-90)" font-size="11" text-anchor="middle">documents</text>',
    ]
    for place, (count, label) in enumerate(zip(counts, labels, strict=True)):
        tall, begin = high * count / most, left + place * width
        lines.append(
            f'<rect x="{begin}" y="{high - tall + 14:.1f}" width="{width - 2}" height="{tall:.1f}" fill="#4878a8"/>'
            f'<text x="{begin + width // 2}" y="{high + 28}" font-size="10" text-anchor="middle">{_safe(label)}</text>'
            f'<text x="{begin + width // 2}" y="{high - tall + 10:.1f}" font-size="10" text-anchor="middle">{count or ""}</text>'
        )
    svg = f'<svg width="{right}" height="{high + 50}" role="img">{"".join(lines)}</svg>'
    return f"<figure><figcaption>{_safe(source)}, {console.counted(sum(counts), 'document')}</figcaption>{svg}</figure>\n"


def _power(place: int) -> str:
    return console.human(2**place, "B").replace(" ", "")


def _samples(samples: Mapping[str, Any]) -> str:
    text = []
    for title, kept in (("Samples of what was dropped", "dropped"), ("Samples of what stayed", "kept")):
        shown = []
        for sample in samples[kept]:
            texts = "".join(
                f"<p>{_safe(one['id'])}, {one['characters']:,} characters{'; ' + _safe(one['note']) if one['note'] else ''}</p>"
                f"<pre>{_safe(one['text'])}</pre>"
                for one in sample["texts"]
            )
            what = ": ".join(filter(None, (sample["source"], ", ".join(filter(None, (sample["stage"], sample["reason"]))))))
            shown.append(f"<details><summary>{_safe(what)}</summary>{texts}</details>")
        if shown:
            note = "An id is the file (below its source) and, behind @, the byte or the row where a record begins, or the text's number."
            text.append(f"<h2>{title}</h2>\n" + _note(note) + "\n".join(shown))
    return "\n".join(text)


def _settings(settings: Mapping[str, Any]) -> str:
    note = "All that decides the bytes of the shards: another value, and they are prepared anew. Of texts and tokenizers, a hash."
    return "<h2>Settings</h2>\n" + _note(note) + _table(("what", "value"), [(name, value) for name, value in settings.items()])
