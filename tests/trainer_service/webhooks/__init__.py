"""Tests of `trainer_service.webhooks`."""
