"""How `tersor.sensitivity.calibrate` measures: batches -> recorded uses of weights -> streaming sums."""
