"""Talks to a model in the terminal: a prompt in, text out as it is made.

    python -m lmtiny.chat --checkpoint runs/tiny
    python -m lmtiny.chat --checkpoint runs/tiny --prompt "The " --temperature 0.7 --top-k 50 --seed 1
    python -m lmtiny.chat --checkpoint runs/tiny/640

A base model goes on with the text it is given. Without --prompt, each line typed is a prompt; an empty line or Ctrl-D ends.
"""

from lmtiny import ctrl_c

if __name__ == "__main__":
    ctrl_c.end_at_once()  # before the imports below, which take their time

import argparse
import sys

from lmtiny import command_line, console, knobs
from lmtiny.errors import UserError


def flags(parser: argparse.ArgumentParser) -> None:
    where = "the run's folder (its newest checkpoint), or one step of it"
    parser.add_argument("--checkpoint", metavar="RUN[/STEP]", required=True, help=where)
    parser.add_argument("--prompt", type=str, help="go on with this text once, and end")
    for flag, default, kind, meaning in (
        ("--max-tokens", 200, command_line.number(int, knobs.MAX_TOKENS), "length of an answer at most, in tokens"),
        ("--temperature", 0.8, command_line.number(float, knobs.TEMPERATURE), "0: the likeliest token; higher: bolder"),
        ("--top-k", 50, command_line.number(int, knobs.TOP_K), "choose among the k likeliest tokens; 0: all"),
        ("--top-p", 1.0, command_line.number(float, knobs.TOP_P), "choose among the likeliest of this probability"),
        ("--seed", 0, command_line.number(int, knobs.SEED), "the same seed gives the same text"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{meaning} (default: %(default)s)")


def main() -> int:
    args = command_line.parse_plain(__doc__, flags)
    if args.prompt == "":
        raise UserError("--prompt is empty: give a text to go on with")

    # Imported once the command line is known to be right: --help and refusals answer at once.
    with ctrl_c.imports():
        from lmtiny.parallel import host
        from lmtiny.parallel.mesh import use_compile_cache
        from lmtiny.sampling.generate import Decoder, room
        from lmtiny.sampling.load import load_model
        from lmtiny.tokenizer import StreamDecoder, warning_about

    host.leave_out_missing_tpu()
    use_compile_cache()
    model = load_model(args.checkpoint)
    decoder, bos = Decoder(model.config), model.tokenizer.bos_id
    if args.prompt is None:
        console.say(f"{model.path}: step {model.step}. Type a text for the model to go on with; an empty line ends.")
    if warning := warning_about(model.tokenizer):
        console.warn(warning)
    turn = 0
    while prompt := args.prompt if args.prompt is not None else _ask():
        tokens = [bos, *model.tokenizer.encode(prompt)]
        if len(tokens) > decoder.context:
            read = room(decoder.context, args.max_tokens) - 1
            console.warn(f"the prompt has {len(tokens) - 1:,} tokens, the model's context {decoder.context:,}: the last {read:,} are read")
        text = StreamDecoder(model.tokenizer)
        for token in decoder.generate(
            model.params, tokens, max_tokens=args.max_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
            seed=(args.seed + turn) % knobs.SEEDS, stop=(bos,), keep=1,
        ):  # fmt: skip
            console.stream(text.feed([token]))
        console.stream(text.finish() + "\n")
        if args.prompt is not None:
            return 0
        turn += 1
    return 0


def _ask() -> str:
    try:
        return input("\n> " if sys.stdin.isatty() else "")
    except EOFError:
        console.say("")
        return ""


if __name__ == "__main__":
    console.run_main(main)
