"""The brake of the engine's tests."""

from tests.inference_service.conftest import brake as brake
