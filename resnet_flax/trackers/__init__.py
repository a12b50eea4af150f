"""Where a run's figures go beside metrics.jsonl: TensorBoard, and what `--track` names. One file for each."""
