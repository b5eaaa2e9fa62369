"""What cleaning, filters, quality score, language identification, MinHash and decontamination do to texts of seven kinds.

    python benchmarks/refining.py --data FOLDER

FOLDER has books/*.txt, wiki_demo.txt, web_c4_300.jsonl, calculus_made_easy.tex, languages/*.txt, chat/ and benchmarks/,
public texts that are too large for the repository. Prints the tables of docs/refining.md, and its figures as JSON.
"""

import collections
import json
import pathlib
import random
import sysconfig
import tempfile

import flags
import numpy as np

from lmtiny import console, corpus, refining
from lmtiny.config import defaults, set_knob
from lmtiny.corpus.documents import clean, sections
from lmtiny.corpus.near_duplicates import Index
from lmtiny.data import pool

with flags.needed("pip install -e '.[corpus]'"):
    import loguru
    from datatrove.data import Document

    from lmtiny.refining import decontamination, gutenberg, language, quality, stages, unwrap, words

HAS = ("books", "wiki_demo.txt", "web_c4_300.jsonl", "calculus_made_easy.tex", "languages", "chat", "benchmarks")
SECTION = 8192  # bytes of a document that is cut from a longer text


def read(path):
    return clean(path.read_text(encoding="utf-8", errors="replace"))


def cut(text):
    return [clean(one) for one in sections(text, SECTION) if clean(one)]


def messages(record):
    found = record if isinstance(record, list) else record["messages"]
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in found)


def texts_of(data):
    """Returns kind -> its documents."""
    chat = (data / "chat/identity_conversations.jsonl").read_text().splitlines()
    code = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    books = [read(path) for path in sorted((data / "books").glob("*.txt"))]
    return {
        "web": [json.loads(line)["text"] for line in (data / "web_c4_300.jsonl").read_text().splitlines()],
        "books": [one for book in books for one in cut(unwrap.unwrap(book))],
        "books, hard-wrapped": [one for book in books for one in cut(book)],
        "wiki": read(data / "wiki_demo.txt").split("\n"),  # an article a line
        "TeX": cut(read(data / "calculus_made_easy.tex")),
        "code": [read(path) for path in code],
        "chat": [messages(json.loads(line)) for line in chat[:300]],
    }


def filters(kinds):
    """Returns filter -> kind -> Counter of reasons, "" for those that stay; each filter alone."""
    found = {}
    for name, make in stages.FILTERS.items():
        for kind, texts in kinds.items():
            block, counts = make(None), collections.Counter()
            for text in texts[:600]:
                result = block.filter(Document(text, ""))
                counts["" if result is True else result[1]] += 1
            found.setdefault(name, {})[kind] = counts
            dropped = {reason: count for reason, count in counts.most_common() if reason}
            shares = ", ".join(f"{reason} {100 * count / counts.total():.1f}" for reason, count in dropped.items())
            print(f"{name} | {kind} | {counts.total()} | {100 * sum(dropped.values()) / counts.total():.1f} % | {shares}", flush=True)
    return found


def refine(texts, folder, **knobs):
    """Returns the ids of those texts that stay."""
    folder.mkdir(parents=True)
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = defaults()
    for name, value in {"kind": "files", "path": str(folder / "t.jsonl"), **knobs}.items():
        set_knob(config, f"corpus.{name}", value)
    units, plan = corpus.units(config), refining.plan_of(config)
    order = {document["id"]: number for number, document in enumerate(units[0].read())}
    with pool.workers(1, 1, 0) as run:
        kept = refining.refine(units, plan, folder, config.corpus, run)
    return {order[document["id"]] for unit in kept for document in unit.read()}


def minhash(books, work, pairs):
    """Plants a changed copy of each of `pairs` documents; returns band of true similarity -> [copies, found, expected]."""
    chosen = random.Random(0).sample([text for text in books if len(text.split()) > 600], pairs)
    numbers, copies = np.random.default_rng(0), []
    for text in chosen:
        own = text.split(" ")
        for place in numbers.choice(len(own), int(len(own) * numbers.uniform(0, 0.12)), replace=False):
            own[place] = str(numbers.choice(["river", "seven", "against", "blue", "walking"]))
        copies.append(" ".join(own))
    kept = refine(chosen + copies, work, deduplicate=True)
    bands = collections.defaultdict(lambda: [0, 0, 0.0])
    for number, (text, copy) in enumerate(zip(chosen, copies, strict=True)):
        true = Index.of([text]).similarity(copy)
        band = bands[min(int(true * 10), 9) / 10]
        band[0] += 1
        band[1] += not {number, number + pairs} <= kept
        band[2] += 1 - (1 - true**8) ** 14
    index_of = {number: Index.of([text]) for number, text in enumerate(chosen + copies)}
    removed = sorted(set(range(2 * pairs)) - kept)
    similar = [index_of[(one + pairs) % (2 * pairs)].similarity((chosen + copies)[one]) for one in removed]
    rightly = {level: sum(value >= level for value in similar) / max(1, len(removed)) for level in (0.5, 0.6, 0.7, 0.8)}
    for low, (count, got, expected) in sorted(bands.items()):
        print(f"MinHash | {low:.1f} to {low + 0.1:.1f} | {count} | {got / count:.1%} | {expected / count:.1%}")
    print(f"MinHash removed {len(removed)} of {2 * pairs}; precision at true similarity: {rightly}")
    return {"bands": dict(sorted(bands.items())), "precision": rightly}


def area(good, bad):
    """Returns the probability that a good one scores above a bad one."""
    order = np.argsort(np.concatenate([good, bad]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    return (ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))


def shuffled(text, seed):
    own = text.split()
    random.Random(seed).shuffle(own)
    return " ".join(own)


def scores(data, kinds, work):
    """Learns from the first half of the books and articles against the web's; returns what it makes of the others."""
    work.mkdir()
    learned, rest = {}, {}
    pieces = {"books": kinds["books"], "wiki": [piece for text in kinds["wiki"] for piece in cut(text)], "web": kinds["web"]}
    for kind, texts in pieces.items():
        halves = texts[: len(texts) // 2], texts[len(texts) // 2 :]  # a book or an article is on one side only
        learned[kind], rest[kind] = (random.Random(0).sample(half, min(300, len(half))) for half in halves)
    for name, texts in (("good", learned["books"] + learned["wiki"]), ("bad", learned["web"])):
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quality.learn(str(work / "good.jsonl"), str(work / "bad.jsonl"), work / "model.npy")
    rest["books, words shuffled"] = [shuffled(text, number) for number, text in enumerate(rest["books"])]
    rest["web, words shuffled"] = [shuffled(text, number) for number, text in enumerate(rest["web"])]
    book = (data / "calculus_made_easy.tex").read_text(encoding="utf-8", errors="replace")
    rest["licence of a book"] = [clean(one) for one in sections(book[book.index("*** START: FULL LICENSE") :], 1024)]
    rest["chat"], rest["code"], rest["TeX"] = kinds["chat"], kinds["code"], kinds["TeX"]
    got = {kind: np.array([quality.score(text, work / "model.npy") for text in texts]) for kind, texts in rest.items()}
    for kind, values in got.items():
        stay = np.mean([quality.stays(text, value, 9.0) for text, value in zip(rest[kind], values, strict=True)])
        print(
            f"quality | {kind} | {len(values)} | median {np.median(values):.3f} | at least 0.5: {np.mean(values >= 0.5):.1%} |"
            f" sampled {stay:.1%} | area against the web {area(got['web'], values) if kind == 'web' else area(values, got['web']):.4f},"
            f" against books {area(got['books'], values):.4f}"
        )
    return {kind: float(np.median(values)) for kind, values in got.items()}


def languages(data, kinds):
    """Identifies paragraphs of known languages, and the English documents of the other kinds."""
    wanted = {
        "amh": "am", "arb": "ar", "ben": "bn", "cmn_hans": "zh", "cmn_hant": "zh", "eng": "en", "fra": "fr", "heb": "he", "hin": "hi",
        "jpn": "ja", "kat": "ka", "ko_constitution": "ko", "kor": "ko", "pol": "pl", "rus": "ru", "spa": "es", "tam": "ta", "tha": "th",
        "tur": "tr", "ukr": "uk", "vie": "vi",
    }  # fmt: skip
    for file in sorted((data / "languages").glob("*.txt")):
        paragraphs = [one for one in read(file).split("\n") if len(one) > 100]
        named = collections.Counter(language.identify(one)[0] for one in paragraphs)
        right = named[wanted.get(file.stem, file.stem)] / max(1, len(paragraphs))
        print(f"language | {file.stem} | {len(paragraphs)} | {right:.1%} | {dict(named.most_common(3))}")
    for kind in ("web", "books", "wiki", "TeX", "code", "chat"):
        found = [language.identify(text) for text in kinds[kind][:600]]
        kept = [name == "en" and probability >= 0.65 for name, probability in found]
        print(f"language | {kind} | {len(found)} | kept as English {np.mean(kept):.1%}")


def contamination(data, kinds, work):
    for name, path in (("gsm8k_train", data / "benchmarks/gsm8k_train.jsonl"), ("mmlu_dev", data / "benchmarks/mmlu_dev")):
        decontamination.build(str(path), 13, words.Words(), work / name)
        items = [item for file in decontamination.find(str(path)) for item in decontamination.items(file)]
        short = sum(len(words.Words().word_tokenize(item)) < 13 for item in items)
        for kind, texts in {**kinds, "books": kinds["books"][:1000], "books, hard-wrapped": [], "its own items": items}.items():
            block = stages.NGramsDecontFilter(str(work / name), stages.NGramsDecontConfig(n_grams=13), language=words.Words())
            hits = []
            for text in texts:
                document = Document(text, "")
                if block.filter(document) is not True:
                    hits.append(document.metadata["contaminated_ngram"])
            print(f"decontaminate {name} ({len(items)} items, {short} too short) | {kind} | {len(hits)} of {len(texts)} | {hits[:2]}")


def cleaning(data):
    for path in [*sorted((data / "books").glob("*.txt"))[:6], data / "wiki_demo.txt", data / "calculus_made_easy.tex"]:
        before = read(path)
        repaired = clean(stages.FTFYFormatter().format(before))
        bare = clean(gutenberg.strip(repaired))
        whole = unwrap.unwrap(bare)
        figures = [f"{len(one.encode()):,}" for one in (before, repaired, bare)]
        print(f"cleaning | {path.name} | {' | '.join(figures)} | lines {bare.count(chr(10)):,} -> {whole.count(chr(10)):,}")


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of texts")
    parser.add_argument("--pairs", type=flags.at_least(1), default=1000, help="planted near-duplicates")
    parts = ("filters", "minhash", "scores", "languages", "contamination", "cleaning")
    parser.add_argument("--only", choices=parts, help="one of them alone")
    args = parser.parse_args()
    flags.refuse_unless_there(args.data, *HAS)
    loguru.logger.disable("datatrove")
    kinds = texts_of(args.data)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        made = {
            "cleaning": lambda: cleaning(args.data),
            "filters": lambda: filters(kinds),
            "minhash": lambda: minhash(kinds["books"], work / "minhash", args.pairs),
            "scores": lambda: scores(args.data, kinds, work / "scores"),
            "languages": lambda: languages(args.data, kinds),
            "contamination": lambda: contamination(args.data, kinds, work / "contamination"),
        }
        figures = {name: part() for name, part in made.items() if args.only in (None, name)}
    print(json.dumps(figures, default=str))


if __name__ == "__main__":
    console.run_main(main)
