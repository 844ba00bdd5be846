"""A PyTorch training loop with TensorBoard's API: only the import line differs from the usual one."""

import torch
from torch import nn

from spoolagent.writers.tensorboard import SummaryWriter

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
inputs = torch.randn(256, 8)
targets = inputs.sum(dim=1, keepdim=True).sin()

with SummaryWriter("runs/regression") as writer:
    for epoch in range(30):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        writer.add_scalar("loss/train", loss, epoch)
        if epoch % 10 == 0:
            for name, parameter in model.named_parameters():
                writer.add_histogram(name, parameter, epoch)
    writer.add_hparams({"lr": 0.01}, {"loss": loss.item()}, run_name="hparams")
    writer.add_text("model", str(model))
print("final loss", loss.item())
