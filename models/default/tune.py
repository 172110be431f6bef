"""The fitted rows brought nearer to the teacher by gradient, past what a closed form can say.

Over batches of texts, the sum of two losses: 1 - the cosine to the teacher's whitened vector; and the Kullback-Leibler
divergence between the softmax of the teacher's cosines with the batch's other texts and that of the table's (as in SEED,
Fang et al. 2021, https://arxiv.org/abs/2101.04731, with the batch for a queue). Few epochs are the regularization.
"""

import numpy as np
import torch
import torch.nn.functional as F

BATCH, TEMPERATURE, RATE = 1024, 0.1, 3e-3


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Returns how much the neighbors of the student's unit vectors [texts, dimensions] differ from the teacher's. A text is
    not its own neighbor."""
    own = torch.eye(len(teacher), dtype=torch.bool)
    p, q = ((x @ x.T / TEMPERATURE).masked_fill(own, -1e9).log_softmax(1) for x in (teacher, student))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def tune(rows: np.ndarray, tokens: list[list[int]], z: np.ndarray, epochs: int, report=lambda line: None) -> np.ndarray:
    """Returns tuned rows [vocabulary, dimensions], given the texts' `tokens` and the teacher's whitened unit vectors `z`. The seed is fixed."""
    lengths = np.array([len(ids) for ids in tokens])
    used = np.flatnonzero(lengths)
    # Adam's steps have the same size whatever the size of the gradient, so the rows are scaled to fit it.
    scale = np.sqrt((rows ** 2).mean())
    table = torch.nn.Parameter(torch.from_numpy(rows / scale))
    optimizer = torch.optim.Adam([table], lr=RATE, betas=(0.9, 0.99))
    steps = len(used) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * steps)
    generator = np.random.default_rng(0)
    for epoch in range(epochs):
        order = generator.permutation(used)
        cosines = divergences = 0.0
        for batch in order[:steps * BATCH].reshape(steps, BATCH):
            ids = torch.tensor([i for text in batch for i in tokens[text]])
            offsets = torch.from_numpy(np.concatenate([[0], lengths[batch].cumsum()[:-1]]))
            student, teacher = F.normalize(F.embedding_bag(ids, table, offsets, mode="sum")), torch.from_numpy(z[batch])
            cosine, apart = (student * teacher).sum(1).mean(), divergence(teacher, student)
            optimizer.zero_grad()
            (1 - cosine + apart).backward()
            optimizer.step()
            schedule.step()
            cosines, divergences = cosines + cosine.item() / steps, divergences + apart.item() / steps
        report(f"epoch {epoch + 1}: cosine {cosines:.4f}, divergence {divergences:.4f}")
    return table.detach().numpy() * scale
