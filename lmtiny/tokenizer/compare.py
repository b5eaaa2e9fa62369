"""Tokenizers beside each other: how many tokens each makes of the same texts, by kind of text; as text, Markdown and a plot."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.files import write_aside, written
from lmtiny.tokenizer.tokenizer import Tokenizer, load

SAMPLES = pathlib.Path(__file__).parents[2] / "tokenizer_data" / "samples"
PEERS = {"r50k_base": "GPT-2", "cl100k_base": "GPT-4", "o200k_base": "GPT-4o"}  # tiktoken's name -> the model's
HEADERS = ("text", "bytes", "{peer} tokens", "bytes/token", "ours", "bytes/token", "tokens against {peer}", "better")
EXPLAINED = "Tokens against another: ours over its, minus 1, so below 0 ours needs fewer. Bytes per token: more is better."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """kinds: of text, in order; sizes: bytes of each; tokens: tokenizer's name -> tokens of each, ours first."""

    kinds: Sequence[str]
    sizes: Sequence[int]
    tokens: Mapping[str, Sequence[int]]

    def rows(self, peer: str) -> list[tuple[str, str, str, str, str, str, str, str]]:
        """Returns a row of HEADERS for each kind, and one for all; "tokens against" is ours over the peer's, minus 1."""
        ours, theirs = next(iter(self.tokens.values())), self.tokens[peer]
        lines = [*zip(self.kinds, self.sizes, theirs, ours, strict=True), ("all", sum(self.sizes), sum(theirs), sum(ours))]
        found = []
        for kind, size, other, own in lines:
            better = "ours" if own < other else peer if other < own else "equal"
            more = f"{own / other - 1:+.1%}"
            found.append((kind, f"{size:,}", f"{other:,}", f"{size / other:.2f}", f"{own:,}", f"{size / own:.2f}", more, better))
        return found


def samples(folder: pathlib.Path = SAMPLES) -> dict[str, str]:
    """Returns kind of text -> text, of the .txt in `folder`: by default short texts of our own, with the project's code.

    Raises:
      UserError: there is none, or one is empty or not UTF-8.
    """
    found = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            found[path.stem] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 text ({type(error).__name__})") from None
        if not found[path.stem]:
            raise UserError(f"{path} is empty: there is nothing to compare on")
    if not found:
        raise UserError(f"no .txt in {folder}: a sample text for each kind of text, named after it, as in {SAMPLES.name}/english.txt")
    return found


def peers(names: Sequence[str], ranks: pathlib.Path | None) -> dict[str, Tokenizer]:
    """Returns title -> tokenizer for each of `names`: tiktoken's names (from the folder `ranks`, or the network) or paths.

    One that cannot be had is left out with a warning.

    Raises:
      UserError: none can be had, or `ranks` is no folder.
    """
    if ranks and not ranks.is_dir():
        raise UserError(f"--ranks {ranks} is no folder: it is the one where tiktoken's files lie, such as {names[0]}.tiktoken")
    found, problems = {}, []
    for name in names:
        path = ranks / f"{name}.tiktoken" if ranks and name in PEERS else pathlib.Path(name)
        try:
            found[PEERS.get(name, path.stem)] = load(path)
        except UserError as error:
            problems.append(f"{name} is left out of the comparison: {error}")
    if not found:
        hint = "" if ranks else "; --ranks names a folder with such files"
        raise UserError(f"no tokenizer to compare with: {problems[0]}{hint}")
    for problem in problems:
        console.warn(problem)
    return found


def compare(ours: Tokenizer, others: Mapping[str, Tokenizer], texts: Mapping[str, str]) -> Comparison:
    """Returns the tokens that each tokenizer makes of each text."""
    sizes = [len(text.encode()) for text in texts.values()]
    named = {"ours": ours, **others}
    return Comparison(list(texts), sizes, {name: [len(one.encode(text)) for text in texts.values()] for name, one in named.items()})


def as_text(comparison: Comparison) -> str:
    """Returns a table for each peer, and what its numbers say."""
    tables = (console.table([head.format(peer=peer) for head in HEADERS], comparison.rows(peer)) for peer in list(comparison.tokens)[1:])
    return "\n\n".join([*tables, EXPLAINED])


def as_markdown(comparison: Comparison, title: str) -> str:
    """Returns the same tables in Markdown, under the heading `title`."""
    lines = [f"# {title}", ""]
    for peer in list(comparison.tokens)[1:]:
        lines.append("| " + " | ".join(head.format(peer=peer) for head in HEADERS) + " |")
        lines.append("|---|" + "---:|" * (len(HEADERS) - 2) + "---|")
        lines += ["| " + " | ".join(row) + " |" for row in comparison.rows(peer)] + [""]
    return "\n".join([*lines, EXPLAINED]) + "\n"


def save(comparison: Comparison, folder: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Writes compare.txt, compare.md and compare.png into `folder`, and returns their paths; raises UserError if it cannot."""
    paths = [folder / f"compare.{suffix}" for suffix in ("txt", "md", "png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(paths[0], as_text(comparison) + "\n")
        write_aside(paths[1], as_markdown(comparison, title))
        with written(paths[2]) as aside:
            _plot(comparison, aside, title)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return paths


def _plot(comparison: Comparison, path: pathlib.Path, title: str) -> None:
    from matplotlib.figure import Figure  # no pyplot: that would look for a display

    figure = Figure(figsize=(1.5 + 1.1 * len(comparison.kinds), 4.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(comparison.tokens)
    for index, (name, tokens) in enumerate(comparison.tokens.items()):
        places = [kind + (index - (len(comparison.tokens) - 1) / 2) * width for kind in range(len(comparison.kinds))]
        ratios = [size / count for size, count in zip(comparison.sizes, tokens, strict=True)]
        axes.bar(places, ratios, width, label=name)
    axes.set_xticks(range(len(comparison.kinds)), comparison.kinds)
    axes.set_ylabel("bytes per token")
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=len(comparison.tokens), fontsize="small")  # inside it would hide bars
    figure.savefig(path, dpi=120)
