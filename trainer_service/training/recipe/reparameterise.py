"""Reparameterisation: what is trained in place of the bare matrix, and folded into a bare matrix at the end.

RESIDUAL adds a small network to the prompt (Residual Prompt Tuning, Razdaibiedina et al. 2023, arXiv:2305.03937): all
virtual tokens share it, so that they move together early on. Its last matrix starts at zero, hence training starts at
the prompt itself.
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
    """The soft prompt `[num_virtual_tokens, hidden_size]` that the parameters mean, float32, with gradient."""
    prompt = parameters[PROMPT]
    if "down" not in parameters:
        return prompt
    scale = parameters["scale"]  # the network works on numbers near one, embeddings are much smaller
    return prompt + torch.relu(prompt / scale @ parameters["down"]) @ parameters["up"] * scale
