"""Training what a file holds, under the rate.

    better = tersor.finetune(packed, model, batches)           # loop.py: the ready loop
    trainable = packed.trainable(model)                        # trainable.py: a module for a loop of one's own
    better = trainable.repack()

Without labels, on the calibration samples: recovery.py distils the whole network, reconstruction.py block by block
(blocks.py finds these).

What is trained: integers of matrices (matrices.py, weights.py), codebooks of kernels (kernels.py), shared values
(shared.py), BatchNorms and biases (small.py). rates.py estimates the code length, trellis.py searches paths.
"""
