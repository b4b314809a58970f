"""Losses and linear heads: pure numpy on one shard; no files, no executors."""

from influence_batch.models.losses import Logistic, Loss, SmoothHinge, Softmax, Squared, make_loss, predict

__all__ = ["Logistic", "Loss", "SmoothHinge", "Softmax", "Squared", "make_loss", "predict"]
