"""Calibration, encoding and fine-tuning on several processes, with a state to go on from if one is lost.

    torchrun --nproc-per-node 2 examples/distributed.py            # one machine; docs/howto/distributed.md has clusters
    python examples/distributed.py                                 # one process: the same file

Every process measures its share of the batches; rank 0 writes the file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from digits_data import calibration_batches
from networks import DigitsNet, load

import tersor
from tersor.parallel import everybody


def main() -> None:
    """Calibrate, compress, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("digits.tersor"))
    parser.add_argument("--effort", type=int, default=5, help="of the encoder, 1 to 9")
    parser.add_argument("--state", type=Path, help="folder that all processes see, to go on from after a failure")
    parser.add_argument("--steps", type=int, default=0, help="fine-tune for so many batches")
    options = parser.parse_args()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)  # the same everywhere, for the same bytes

    model = load(DigitsNet(), Path(__file__).parent / "digits.safetensors").eval()
    batches = calibration_batches(batch=20)[rank::size]  # rank r of n: batches r, r + n, r + 2n ...
    state = options.state
    stats = tersor.calibrate(model, batches, state=state and state / "calibration")
    packed = tersor.compress(model, stats, bits=2.0, effort=options.effort, team=everybody(),
                             state=state and state / "encoding")
    if options.steps:
        packed = tersor.finetune(packed, model, batches[:-1], held_out=batches[-1:], steps=options.steps,
                                 team=everybody(), checkpoint=state and state / "finetune")
    if rank == 0:
        packed.save(options.output)
        print(f"{options.output}: {packed.size:,} bytes; processes: {size}")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
