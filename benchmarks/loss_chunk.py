"""What train.loss_chunk costs and saves: the cross-entropy in chunks of tokens against all logits at once.

    python benchmarks/loss_chunk.py
    python benchmarks/loss_chunk.py --vocab 32768 --chunks 512 1024 2048
"""

import flags
import steps

from lmtiny import console


def main():
    parser = steps.flags(__doc__, draws=False)
    parser.add_argument("--vocab", type=flags.at_least(300), default=16384, help="tokens of vocabulary")
    chunks = "tokens whose logits are there at once; whole: those of a batch"
    parser.add_argument("--chunks", type=flags.at_least(1), nargs="+", default=[256, 512, 1024], help=chunks)
    arguments = parser.parse_args()
    shape = flags.overrides(arguments) | {"tokenizer.vocab_size": arguments.vocab, "model.scan_layers": True}
    compiled = {}
    for chunk in (0, *arguments.chunks):
        compiled[chunk] = steps.build(arguments.config, shape | {"train.loss_chunk": chunk})
        print(f"compiled: {chunk or 'whole'}, {compiled[chunk].temp_mib:,.0f} MiB", flush=True)
    print(f"{1 + arguments.repeats} steps of each, in turns", flush=True)
    found = steps.paired_seconds(compiled, arguments.repeats)
    print("chunk    temporaries    of whole   s a step   speed of whole   cores at work")
    record = {}
    for chunk, step in compiled.items():
        seconds, share = found[chunk]
        record[chunk] = {"mib": step.temp_mib, "seconds": seconds, "speed": found[0][0] / seconds}
        print(f"{chunk or 'whole':<8} {step.temp_mib:>8,.0f} MiB {step.temp_mib / compiled[0].temp_mib:>11.2f} {seconds:>10.3f} "
              f"{found[0][0] / seconds:>16.3f} {share:>15.2f}")  # fmt: skip
    units = "MiB, seconds, times the speed of whole"
    steps.finish({"what": "cross-entropy in chunks", "units": units, "vocab": arguments.vocab, "chunks": record})


if __name__ == "__main__":
    console.run_main(main)
