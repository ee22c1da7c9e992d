"""Writes a job's curves to TensorBoard, MLflow or Weights & Biases while it trains.

`entries` turns events into what such a tool shows; `tensorboard`, `mlflow` and `wandb` are a small adapter each, which
needs the extra of the same name. An adapter remembers the number of the last event beside the curves, so tracking that
was interrupted continues after it. Knows no connection: `softprompt jobs track` brings the events.
"""
