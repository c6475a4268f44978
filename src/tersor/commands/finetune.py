"""`tersor finetune`: train what a file holds, at no more bytes, until it is nearer to the model that it was made of."""

from __future__ import annotations

import argparse
import os
import time

from ..show import Outcome, Reporter, plural
from . import arguments, data_options, models
from .outputs import check_output

HELP = "train a file at no more bytes, to lose less"
DESCRIPTION = ("Train what a .tersor file holds to give the answers that its model gives, at no more bytes. No labels "
               "are needed. It pays where a file has lost points of accuracy, and begins best with a file without a "
               "trellis (tersor compress --no-trellis).")
VIEWS = ("shift", "mirror", "blend")
STEPS, BATCH = 1000, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, FILE.tersor, the data, how to train."""
    models.add_model(parser)
    parser.add_argument("file", metavar="FILE.tersor", type=arguments.existing)
    arguments.add_output(parser, "FILE-finetuned.tersor")
    parser.add_argument("--size", type=arguments.size, metavar="BYTES",
                        help="bytes that the file shall have at most: 70000, 70kB (default: those of FILE.tersor)")
    data_options.add_data(parser, required=True, purpose="train", images=None)
    training = parser.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--steps", type=arguments.count, metavar="N", help=f"batches (default: {STEPS:,})")
    length.add_argument("--epochs", type=arguments.count, metavar="N", help="passes over the inputs")
    training.add_argument("--batch", type=arguments.count, metavar="N", default=BATCH,
                          help="inputs of a batch (default: %(default)s)")
    training.add_argument("--views", type=views, metavar="LIST",
                          help="what is done to inputs: shift, mirror, blend, with commas, or none (default: "
                               "shift,mirror for images, none for others)")
    training.add_argument("--labels", metavar="FILE", help="classes of the inputs: .csv of NAME,INDEX, or .txt or .npy "
                          "in order (default: class sub-folders, or labels in the file)")
    training.add_argument("--label-weight", type=arguments.share, metavar="PERCENT", default=0.0,
                          help="share of the labels in the loss; the rest is distance from the answers of MODEL "
                               "(default: 0)")
    training.add_argument("--held-out", type=arguments.share, metavar="PERCENT", default=0.1,
                          help="share of the inputs that files are judged by, and not trained on (default: 10)")
    training.add_argument("--rate", type=arguments.positive, metavar="R",
                          help="Adam's learning rate of integers, in quantization steps (default: 0.005; lower where "
                               "there are few inputs)")
    training.add_argument("--patience", type=arguments.count, metavar="N",
                          help="stop after N of ten looks that found nothing better")
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of views and order (default: 0)")
    training.add_argument("--bfloat16", action="store_true",
                          help="forward passes in bfloat16 (autocast): faster where the processor has it")
    arguments.add_state(parser)


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Train and save the better file."""
    start = time.perf_counter()
    output = options.output or str(options.file).removesuffix(".tersor") + "-finetuned.tersor"
    check_output(output, [*models.files_of(options), options.file], options.force)
    network = models.network_of(models.open_options(options), "fine-tuning")
    from ..packed import Packed
    packed = Packed.read(options.file)
    data = data_options.open_inputs(options, options.data, options.images, options.labels)
    for note in data.notes:
        reporter.note(note)
    with reporter.busy("reading inputs"):
        from ..training.sampling import Samples, compared, tuned_on
        samples = Samples.of(data, options.data)
        data_options.tell_skipped(data, reporter)
    training, judges = samples.split(options.held_out)
    del samples  # they are copies
    with reporter.busy(f"fine-tuning {os.path.basename(options.file)}"):
        tuned = tuned_on(packed, network, training, judges, steps=options.steps or STEPS, epochs=options.epochs,
                         size=options.size, label_weight=options.label_weight, views=options.views,
                         batch=options.batch, rate=options.rate, patience=options.patience, seed=options.seed,
                         bfloat16=options.bfloat16, state=options.state, progress=reporter.progress)
        tuned.save(output, overwrite=options.force)
        before, after = compared(network, (packed, tuned), judges)
    better = tuned.data != packed.data
    if not better:
        reporter.note("fine-tuning found nothing better on the held-out inputs: the file is the one that there was")
    accuracy = f", top-1 {before['top1']:.2%} -> {after['top1']:.2%}" if "top1" in after else ""
    seconds = time.perf_counter() - start
    summary = (f"{options.file} -> {output}: {packed.size:,} -> {tuned.size:,} bytes; on "
               f"{plural(len(judges), 'held-out input')} KL {before['kl']:.4g} -> {after['kl']:.4g}, agreement "
               f"{before['agreement']:.2%} -> {after['agreement']:.2%}{accuracy}, {seconds:.1f} s")
    return Outcome(summary, {"model": options.model, "file": options.file, "output": output, "better": better,
                             "file_bytes": packed.size, "total_bytes": tuned.size, "trained_on": len(training),
                             "held_out": len(judges), "before": before, "after": after,
                             "seconds": round(seconds, 3)})


def views(text: str) -> tuple[str, ...]:
    """
    >>> views("shift,blend"), views("none")
    (('shift', 'blend'), ())
    """
    chosen = () if text == "none" else arguments.names(text)
    if any(view not in VIEWS for view in chosen):
        raise argparse.ArgumentTypeError(f"{text!r} is not none, nor a list of {', '.join(VIEWS)}")
    return chosen
