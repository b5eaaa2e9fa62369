"""Raw text -> tokenizer and shards of packed rows, resumable at every step.

The steps: read the units of the corpus; choose the validation side and screen the training side against it; learn the
tokenizer from what is left to train on; encode; pack; write shards. Each step's key names all that went into it.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import ml_collections
import numpy as np

from lmtiny import config as config_module
from lmtiny import console, corpus, files, ownership, refining, tokenizer
from lmtiny.corpus import Side, Unit, digest
from lmtiny.data import learning, mixture, packing, pool, publishing, report, shards, split_told, stages
from lmtiny.data.shards import Prepared
from lmtiny.errors import NothingLeft, UserError

Config: TypeAlias = ml_collections.ConfigDict
Paths: TypeAlias = list[pathlib.Path]  # a file for each unit of the corpus
Facts: TypeAlias = list[np.ndarray]  # for each unit, stages.FACTS of its documents
TEXT = "text of the corpus"  # its hash follows from settings too: told where nothing else differs
PREPARED = pathlib.Path("prepared")  # where data.dir names no other folder
WORK = "parts"  # folder of the unfinished, inside the prepared one
PURPOSE, UNFINISHED = "prepared data", "what is not finished of prepared data"


def prepare(config: Config, rebuild: bool = False) -> Prepared:
    """Returns the shards and the tokenizer that `config` asks for, made now unless they are there.

    What a killed run had finished is used; the result does not depend on that, nor on the number of processes.

    Raises:
      UserError: the corpus cannot be used, the folder cannot be written or is not lmtiny's, it holds
        something else, or what it holds is damaged.
    """
    if config.data.dir:
        _refuse_strangers(pathlib.Path(config.data.dir), config)  # before anything is downloaded for it
    units = corpus.units(config)
    given = ready_tokenizer(config)
    depends_on = _depends_on(config, units, given)
    folder = pathlib.Path(config.data.dir) if config.data.dir else default_folder(config, given, depends_on)
    _refuse_strangers(folder, config)
    if not rebuild and (found := _finished(folder, config, depends_on)):
        if _is_left_over(folder / WORK):
            with contextlib.suppress(OSError), files.locked(folder, lambda: _say_waiting(folder)):
                _tidy(folder)  # if the folder can be written
        return _used_again(found, config)
    refining.check(refining.plan_of(config), config.corpus.executor)
    corpus.check(units)  # not before: what is finished is used without the libraries that it was made with
    made = not folder.exists()
    try:
        with _written_to(folder), files.locked(folder, lambda: _say_waiting(folder)):
            ownership.claim(folder, PURPOSE, "data.dir", lambda: shards.is_prepared(folder))
            files.sweep(folder)
            # Another process may have made it meanwhile.
            if not rebuild and (found := _finished(folder, config, depends_on)):
                _tidy(folder)
                return _used_again(found, config)
            _refuse_links(folder)
            ownership.claim(folder / WORK, UNFINISHED, "data.dir")
            if rebuild:
                _remove(folder)
                ownership.claim(folder / WORK, UNFINISHED, "data.dir")
            files.sweep(folder / WORK)
            _build(config, units, given, folder, depends_on)
            _tidy(folder)
    except UserError as error:
        if made and (isinstance(error, NothingLeft) or not _holds_files(folder)):
            with contextlib.suppress(OSError):
                ownership.remove(folder / WORK)
                ownership.remove_unused(folder)
        raise
    return shards.read(folder)


@contextlib.contextmanager
def _written_to(folder: pathlib.Path) -> Iterator[None]:
    """Turns what the system says of a file or a folder into UserError."""
    try:
        yield
    except BrokenPipeError:  # of what is printed, and no failure
        raise
    except OSError as error:
        where = folder
        if isinstance(error.filename, str | bytes):
            named = pathlib.Path(os.fsdecode(error.filename))
            where = folder if named.is_relative_to(folder) else named
        what_to_do = "what is finished is kept; --config.data.dir names another folder"
        raise UserError(f"{where} cannot be written: {error.strerror or error}; {what_to_do}") from error


def _refuse_strangers(folder: pathlib.Path, config: Config) -> None:
    """Raises UserError where the folder holds other things than a preparation."""
    files.refuse_url(folder, "data.dir")
    with _written_to(folder):
        _refuse_texts_folder(folder, config)
        ownership.refuse_strangers(folder, PURPOSE, "data.dir", lambda: shards.is_prepared(folder))


def _refuse_links(folder: pathlib.Path) -> None:
    """Raises UserError where files would be written, and removed, through a link to another folder."""
    for path in (folder / WORK, folder / shards.TOKENIZER):
        if path.is_symlink():
            raise UserError(f"data.dir: {path} is a link; take it away, or name another folder")


def _is_left_over(work: pathlib.Path) -> bool:
    """Returns whether lmtiny left its folder of the unfinished behind."""
    return not work.is_symlink() and ownership.purpose(work) == UNFINISHED


def _holds_files(folder: pathlib.Path) -> bool:
    """Returns whether anything was made in the folder, or is there from elsewhere."""
    return any(path.is_file() and path.name not in (ownership.MARK, ".lock") for path in folder.rglob("*"))


def _tidy(folder: pathlib.Path) -> None:
    """Publishes the report and removes the unfinished.

    Where that fails the shards are whole all the same, and the next start tries again.
    """
    if not _is_left_over(folder / WORK):
        return
    try:
        files.sweep(folder)
        report.publish(folder, folder / WORK)
        ownership.remove(folder / WORK)
    except (OSError, UserError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        console.warn(
            f"{folder} is prepared, but its report or the removal of {folder / WORK} failed: {words}; "
            "the next start tries again"
        )


def _say_waiting(folder: pathlib.Path) -> None:
    """Says that another process has the folder; raises UserError where that one waits for this one in turn."""
    if pool.runs_the_script_again():
        raise UserError(f"{pool.UNGUARDED}, so each process that it starts to help runs it again")
    console.say(f"{folder} is being prepared by another process; waiting for it")


def _refuse_texts_folder(folder: pathlib.Path, config: Config) -> None:
    """Raises UserError where the folder is one that a path of the corpus names: shards would lie among the texts."""
    named = config.corpus.path.split(",") if config.corpus.kind == "files" else [source["path"] for source in config.corpus.sources]
    among_texts = folder.is_dir() and any(folder.resolve() == pathlib.Path(one).resolve() for one in named)
    if among_texts and not (folder / shards.MANIFEST).exists():
        raise UserError(f"data.dir = {config.data.dir!r} is the folder of the texts; name one for the shards alone")


def prepared_before(config: Config, rows: str) -> Prepared | None:
    """Returns the finished shards whose `Prepared.digest` is `rows`, in data.dir or else in prepared/, or None; reads no text.

    Their validation rows divide into rows of evaluation.context_length, which a resumed run may change.
    """
    length = config_module.validation_length(config)
    files.refuse_url(config.data.dir, "data.dir")
    for folder in [pathlib.Path(config.data.dir)] if config.data.dir else sorted(PREPARED.glob("*")):
        # Where nothing is there, or it is damaged, it is not what is looked for.
        with contextlib.suppress(UserError, OSError):
            if (found := shards.read(folder)).digest == rows and not found.row_length("validation") % length:
                return found
    return None


def ready_tokenizer(config: Config) -> tokenizer.Tokenizer | None:
    """Returns the ready tokenizer that the config names, cut to the size it says, or None where one is to be learned.

    Raises:
      UserError: it cannot be read, or not be cut so.
    """
    if not config.tokenizer.path:
        return None
    files.refuse_url(config.tokenizer.path, "tokenizer.path")
    given = tokenizer.load(config.tokenizer.path)
    return given.cut(config.tokenizer.cut) if config.tokenizer.cut else given


def refuse_another_tokenizer(config: Config, overrides: Collection[str]) -> None:
    """Raises UserError where the command line gives a tokenizer.vocab_size or tokenizer.kind that the ready tokenizer does not have."""
    if not {"tokenizer.vocab_size", "tokenizer.kind"}.intersection(overrides) or (given := ready_tokenizer(config)) is None:
        return
    asked, kind = config.tokenizer.vocab_size, config.tokenizer.kind
    if "tokenizer.kind" in overrides and given.kind != kind:
        raise UserError(f"tokenizer.kind = {kind!r}, but {config.tokenizer.path} is of the kind {given.kind!r}: leave it out")
    if "tokenizer.vocab_size" in overrides and given.vocab_size != asked:
        cut = f", or take its first {asked} tokens with tokenizer.cut" if given.kind == "bpe" and asked < given.vocab_size else ""
        raise UserError(f"tokenizer.vocab_size = {asked}, but {config.tokenizer.path} has {given.vocab_size} tokens: leave it out{cut}")


def row_lengths(config: Config) -> dict[str, int]:
    """Returns split -> T of its stored rows."""
    of_training = int(config.data.row_length or config.model.context_length)
    return {"train": of_training, "validation": int(config.evaluation.context_length or of_training)}


def _own_lengths(config: Config) -> dict[str, int]:
    """Returns split -> T of its stored rows, of those whose T is not that of training."""
    lengths = row_lengths(config)
    return {split: length for split, length in lengths.items() if length != lengths["train"]}


def _depends_on(config: Config, units: list[Unit], given: tokenizer.Tokenizer | None) -> dict[str, Any]:
    """Returns all that decides the bytes of the shards, by the name to tell it by; settings come before what follows from them."""
    knobs = ["corpus.kind", "corpus.near_duplicate", "data.rows_per_shard"]
    knobs += ["corpus.installed_packages"] if config.corpus.kind == "builtin" else ["corpus.section_bytes", "corpus.text_key"]
    knobs += [] if config.corpus.validation_path else ["corpus.validation_fraction"]
    knobs += [] if given else ["tokenizer.kind", "tokenizer.vocab_size", "tokenizer.sample_bytes"]
    wanted = mixture.shares(config)
    weights = {"weights of the sources": wanted if not given else sorted(wanted)} if wanted else {}
    knobs += ["tokenizer.word_share"] if not given and config.tokenizer.kind == "superword" else []
    return {
        "format": shards.FORMAT,
        **weights,
        "T (data.row_length, or else model.context_length)": row_lengths(config)["train"],
        **{f"T of {split} rows (evaluation.context_length)": length for split, length in _own_lengths(config).items()},
        **{name: config_module.get_knob(config, name) for name in knobs},
        "tokenizer.path": given.hash[:16] if given else "",
        "files held out (corpus.validation_path)": digest([unit.name for unit in units if unit.held_out])[:16],
        TEXT: digest([unit.fingerprint for unit in units])[:16],
        **refining.plan_of(config).depends_on(),
    }


def default_folder(config: Config, given: tokenizer.Tokenizer | None, depends_on: dict[str, Any]) -> pathlib.Path:
    """Returns prepared/<corpus>-<tokenizer>-T<row length>-<hash of what it depends on>; without a size where that follows from the text."""
    kind, size = (given.kind, given.vocab_size) if given else (config.tokenizer.kind, config.tokenizer.vocab_size)
    size = "" if not given and kind in ("char", "byte") else size
    return PREPARED / f"{corpus.name(config)}-{kind}{size}-T{row_lengths(config)['train']}-{digest(depends_on)[:8]}"


def _finished(folder: pathlib.Path, config: Config, depends_on: dict[str, Any]) -> Prepared | None:
    """Returns what is in the folder if it is what is asked for, None if it is not finished, else raises UserError."""
    if not (folder / shards.MANIFEST).exists():
        return None
    found = shards.read(folder)
    there = found.manifest["depends_on"]
    if there != depends_on:
        shown = _what_differs(there, depends_on)
        raise UserError(f"{folder} was prepared from something else: {shown}; name another --config.data.dir, or {shards.REBUILD}")
    mixed = found.manifest["splits"]["train"].get("mixture", [])
    if {one["source"] for one in mixed} != set(mixture.shares(config)):
        problem = "its mixture is not of the sources that have a weight"
        raise UserError(f"{folder / shards.MANIFEST}: {problem}; {shards.REBUILD}")
    return found


def _what_differs(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Returns the first differences in words; that the text is another one only where no setting is: it may follow from that."""
    differing = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    was, now = (
        {name: f"{said[name]!r:.80}" if name in said else "not set" for name in differing}
        for said in (there, here)
    )
    settings = [f"{name:.80} was {was[name]}, is {now[name]}" for name in differing if name != TEXT]
    return "; ".join(settings[:3]) or f"the {TEXT} has changed"


def _used_again(found: Prepared, config: Config) -> Prepared:
    """Returns what was found, when its report, and the person, have been told the weights that the sources have this time."""
    report.renew(found.folder, mixture.shares(config), mixture.got(found.manifest, config))
    publishing.say_mixture(found.manifest, config)
    return found


def _remove(folder: pathlib.Path) -> None:
    """Removes an earlier preparation, manifest first, and nothing else that may be in the folder.

    Its tokenizer stays until another takes its place.
    """
    ownership.remove(folder / WORK)
    there = sorted(path.name for path in folder.iterdir() if shards.NAME.fullmatch(path.name))
    ownership.remove_files(folder, [shards.MANIFEST, *there, report.JSON, report.PAGE])


def _build(config: Config, units: list[Unit], given: tokenizer.Tokenizer | None, folder: pathlib.Path, depends_on: dict[str, Any]) -> None:
    work = folder / WORK
    num_bytes = sum(unit.num_bytes for unit in units)
    amount = f"{console.human(num_bytes, 'B')} in {console.counted(len(units), 'unit')}"
    console.say(f"preparing {corpus.name(config)} ({amount}) in {folder}")
    with pool.workers(config.data.num_processes, len(units), num_bytes) as run:
        plan = refining.plan_of(config)
        given_units, refined = units, None
        if not plan.nothing():
            units = refining.refine(given_units, plan, work, config.corpus, run)
            refined = refining.counts(given_units, plan, work)
        documents = _read(run, units, work)
        documents, held_out, mixed = _at_least_two(documents, units, config, work)
        facts = [np.load(stages.facts_path(path)) for path in documents]
        sides = _sides(run, documents, facts, held_out, config, work)
        key = digest([path.name for path in sides])[:16]
        split_told.say(facts, sides, refined or report.counted(documents))
        split_told.warn(facts, sides, not any(held_out), config)
        tokenizer_folder = work / f"tokenizer-{digest(key, depends_on)[:16]}"
        learning.tokenizer_for(config, given, documents, facts, sides, mixed, tokenizer_folder)
        known = tokenizer.load(tokenizer_folder)
        tokens = _encode(run, documents, facts, sides, tokenizer_folder, digest(key, known.hash)[:16], work)
    lengths, own_lengths = row_lengths(config), _own_lengths(config)
    shard_key = digest(
        key, known.hash, packing.VERSION, lengths["train"], *own_lengths.values(), config.data.rows_per_shard, mixed
    )[:16]  # fmt: skip
    splits = {
        split: publishing.write_split(split, lengths[split], config, known, facts, sides, tokens, mixed, shard_key)
        | ({"row_length": own_lengths[split]} if split in own_lengths else {})
        for split in shards.SPLITS
    }
    manifest = {
        "format": shards.FORMAT,
        "corpus": corpus.name(config),
        "corpus_hash": stages.corpus_hash(facts),
        "config_digest": digest(depends_on),
        "tokenizer": {"kind": known.kind, "vocab_size": known.vocab_size, "hash": known.hash, "bos_id": known.bos_id},
        "row_length": lengths["train"],
        "dtype": stages.token_dtype(known.vocab_size).str,
        **_dropped(sides),
        "splits": splits,
        "sources": publishing.sources(tokens),
        "depends_on": depends_on,
    }
    wanted, got = mixture.shares(config), mixture.got(manifest, config)
    report.save(work, report.collect(manifest, documents, tokens, refined, wanted, got))
    publishing.publish(folder, work, tokenizer_folder, shard_key, manifest)
    publishing.say(manifest)
    publishing.say_mixture(manifest, config)


def _read(run: pool.Run, units: list[Unit], work: pathlib.Path) -> Paths:
    paths = [work / f"documents-{unit.fingerprint[:16]}.jsonl" for unit in units]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    run("reading", stages.read, [(units[n], paths[n]) for n in todo], [units[n].num_bytes for n in todo])
    return paths


def _at_least_two(paths: Paths, units: list[Unit], config: Config, work: pathlib.Path) -> tuple[Paths, list[bool], list[str]]:
    """Returns the parts, whether they are held out, and the source that each is mixed under ("": it is not).

    A corpus of one document is cut in two, and that is said.
    """
    held_out, mixed = [unit.held_out for unit in units], bool(mixture.shares(config))
    if sum(len(np.load(stages.facts_path(path), mmap_mode="r")) for path in paths) != 1 or any(held_out):
        return paths, held_out, [unit.source if mixed else "" for unit in units]
    document = next(document for path in paths for document in stages.documents_of(path))
    halves = corpus.in_two(document["text"], config.corpus.validation_fraction)
    console.say(f"the corpus is a single document: its last {len(halves[1].encode()):,} bytes become the validation text")
    made = []
    for part, text in zip(shards.SPLITS, halves, strict=True):
        made.append(work / f"documents-{digest(document['id'], text)[:16]}.jsonl")
        stages.write_documents([{**document, "text": text, "id": f"{document['id']}.{part}"}], made[-1])
    return made, [False, True], [units[0].source if mixed else ""] * 2


def _sides(run: pool.Run, documents: Paths, facts: Facts, held_out: list[bool], config: Config, work: pathlib.Path) -> Paths:
    """Returns, for each part, the file of its documents' sides, near-duplicates of held-out ones marked."""
    threshold = config.corpus.near_duplicate
    chosen = corpus.choose([one["hash"] for one in facts], held_out, config.corpus.validation_fraction)
    key = digest([path.name for path in documents], hashlib.sha256(np.concatenate(chosen).tobytes()).hexdigest(), threshold)[:16]
    paths = [work / f"sides-{path.stem.removeprefix('documents-')}-{key}.npy" for path in documents]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    if threshold > 1:
        for number in todo:
            files.write_array(paths[number], chosen[number])
        return paths
    index = work / f"index-{key}"
    if todo and not index.exists():
        with files.written(index) as aside:
            of_parts = (stages.of_side(path, side, Side.VALIDATION) for path, side in zip(documents, chosen, strict=True))
            texts = (document["text"] for of_part in of_parts for document in of_part)
            corpus.Index.of(texts).save(aside)
    jobs = [(documents[n], chosen[n], index, threshold, paths[n]) for n in todo]
    run("looking for near-duplicates", stages.screen, jobs, [int(facts[n]["bytes"].sum()) for n in todo])
    return paths


def _dropped(sides: Paths) -> dict[str, int]:
    counts = sum((np.bincount(np.load(path), minlength=len(Side)) for path in sides), np.zeros(len(Side), np.int64))
    return {"duplicates": int(counts[Side.DUPLICATE]), "near_duplicates": int(counts[Side.NEAR_DUPLICATE])}


def _encode(run: pool.Run, documents: Paths, facts: Facts, sides: Paths, folder: pathlib.Path, key: str, work: pathlib.Path) -> Paths:
    paths = [work / f"tokens-{path.stem.removeprefix('documents-')}-{key}.npy" for path in documents]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    jobs = [(documents[n], sides[n], folder, paths[n]) for n in todo]
    run("encoding", stages.encode, jobs, [int(facts[n]["bytes"].sum()) for n in todo])
    return paths
