"""What benchmarks/sides.py has the Python of nanochat do, in nanochat's folder: write its shards, train, score a checkpoint."""

import argparse
import json
import pathlib
import runpy
import shlex
import sys


def write_shards(texts, folder):
    """Writes the "train" and "held_out" texts of the JSON file `texts` as nanochat's shards; the last one is its validation."""
    import pyarrow
    import pyarrow.parquet

    documents = json.loads(pathlib.Path(texts).read_text())
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "held_out")):
        table = pyarrow.table({"text": documents[split]})
        pyarrow.parquet.write_table(table, folder / f"shard_{number:05d}.parquet", row_group_size=512)


def train(flags, seed):
    """Runs scripts.base_train with `flags`, its torch.manual_seed given `seed`."""
    import torch

    set_seed = torch.manual_seed
    torch.manual_seed = lambda _: set_seed(seed)
    sys.argv = ["base_train", *shlex.split(flags)]
    runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)


def windows_of(ids, length, stride):
    """Returns [(window, how many of its tokens an earlier one has scored)]: windows of at most `length` tokens, one every `stride`.

    Together they score each token once; where they overlap, each but those of the first window has length - stride tokens before it.
    """
    starts = range(0, max(len(ids) - (length - stride), min(len(ids), 1)), stride)
    return [(ids[start : start + length], length - stride if start else 0) for start in starts]


def score(texts, folder):
    """Prints {"apart", "overlapping": nats, "bytes", "tokens", "parameters"} of nanochat's newest checkpoint over the sections of `texts`.

    The windows, <|bos|> and what it was trained on less one, stand one behind the other, or every half of one.
    """
    import torch
    from nanochat.checkpoint_manager import build_model, find_last_step

    model, tokenizer, meta = build_model(folder, find_last_step(folder), torch.device("cpu"), "eval")
    length, bos = meta["model_config"]["sequence_len"], tokenizer.get_bos_token_id()
    sections = tokenizer.encode(json.loads(pathlib.Path(texts).read_text())["sections"])

    def nats_of(stride):
        windows, nats = [window for ids in sections for window in windows_of(ids, length, stride)], 0.0
        for start in range(0, len(windows), 16):
            some = windows[start : start + 16]
            inputs = torch.tensor([[bos, *ids[:-1]] + [bos] * (length - len(ids)) for ids, _ in some])
            targets = torch.tensor([[-1] * known + ids[known:] + [-1] * (length - len(ids)) for ids, known in some])  # -1: no loss
            nats += model(inputs, targets, loss_reduction="none").double().sum().item()
        return nats

    with torch.inference_mode():
        found = {"apart": nats_of(length), "overlapping": nats_of(length // 2)}
    found["bytes"] = sum(len(tokenizer.decode_single_token_bytes(token)) for ids in sections for token in ids)
    parameters = sum(value.numel() for value in model.parameters())
    print(json.dumps({**found, "tokens": sum(map(len, sections)), "parameters": parameters}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("shards", "train", "score"))
    parser.add_argument("--texts", help="the JSON file of equal_time.py")
    parser.add_argument("--folder", help="shards: where they go; score: of the checkpoints")
    parser.add_argument("--flags", help="train: of base_train")
    parser.add_argument("--seed", type=int, help="train: of the weights")
    args = parser.parse_args()
    if args.job == "shards":
        write_shards(args.texts, args.folder)
    elif args.job == "train":
        train(args.flags, args.seed)
    else:
        score(args.texts, args.folder)


if __name__ == "__main__":
    main()
