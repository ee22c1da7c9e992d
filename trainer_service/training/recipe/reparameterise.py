"""Reparameterisation: parameters trained in place of the plain matrix, and folded into a matrix at the end.

RESIDUAL adds a small network to the prompt (Residual Prompt Tuning, Razdaibiedina et al. 2023, arXiv:2305.03937). All
virtual tokens share it, so they move together early on. Its last matrix is initially zero, so training starts from the
initial prompt.
"""

from __future__ import annotations

import torch

from trainer_service.training.spec import Reparameterisation

PROMPT = "prompt"
BOTTLENECK = 128


def new_parameters(
    matrix: torch.Tensor, method: Reparameterisation, embedding_std: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The trained tensors, float32 leaves; `matrix` is `[num_virtual_tokens, hidden_size]` on the target device."""
    parameters = {PROMPT: matrix.detach().clone().float()}
    if method is Reparameterisation.RESIDUAL:
        hidden = matrix.shape[1]
        down = torch.randn(hidden, BOTTLENECK, generator=generator) * hidden**-0.5
        parameters["down"] = down.to(matrix.device)
        parameters["up"] = torch.zeros(BOTTLENECK, hidden, device=matrix.device)
        parameters["scale"] = torch.full((1,), embedding_std, device=matrix.device)
    return {name: parameter.requires_grad_(name != "scale") for name, parameter in parameters.items()}


def effective_matrix(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """The soft prompt `[num_virtual_tokens, hidden_size]` computed from the parameters, float32, with gradient."""
    prompt = parameters[PROMPT]
    if "down" not in parameters:
        return prompt
    scale = parameters["scale"]  # the network works on numbers near one, embeddings are much smaller
    return prompt + torch.relu(prompt / scale @ parameters["down"]) @ parameters["up"] * scale
