"""A small config on any mesh of eight devices, whose traffic is worked out by hand or by formula."""

from lmtiny import config as config_lib

LAYERS = 4


def config_on(mesh, **changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 512
    config.model.update(
        {"num_layers": LAYERS, "width": 64, "num_heads": 8, "context_length": 64, "activation": "swiglu", "scan_layers": True,
         "remat": "block"}
    )  # fmt: skip
    config.train.batch_size, config.optimizer.name = 16, "adamw"
    config.parallel.update(mesh)
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config
