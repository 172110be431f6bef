"""Turns the rows of all pieces into the shipped rows, by pruning, the recipe of docs/refine.md, and the closed-form fit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

SHRINKAGE = 1e-3


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def counts(ids: list[list[int]], vocabulary: int) -> sp.csr_matrix:
    """Returns the token counts of the texts, [texts, vocabulary]."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    columns = np.fromiter((i for text in ids for i in text), np.int32, lengths.sum())
    matrix = sp.csr_matrix((np.ones(len(columns), np.float32), columns, np.concatenate([[0], lengths.cumsum()])),
                           shape=(len(ids), vocabulary))
    matrix.sum_duplicates()
    return matrix


def recipe(rows: np.ndarray, p: np.ndarray, a: float, g: float = 1.0) -> np.ndarray:
    """Applies SIF weights, centering and whitening, as docs/refine.md describes them."""
    e = rows / np.sqrt((rows ** 2).mean(1, keepdims=True) + 1e-6)
    w = a / (a + p)
    q = (p + 1e-9) * w
    q /= q.sum()
    e = e - q @ e
    variances, axes = np.linalg.eigh((e * q[:, None]).T @ e)
    variances, axes = variances[::-1], axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return (w[:, None] * (e @ axes) * (variances + SHRINKAGE * variances.mean()) ** (-g / 2)).astype(np.float32)


def target(y: np.ndarray, gamma: float) -> np.ndarray:
    """Returns the teacher's vectors, centered, whitened by gamma, and scaled to length 1."""
    centred = y - y.mean(0)
    variances, axes = np.linalg.eigh(np.cov(centred, rowvar=False, dtype=np.float64))
    variances, axes = variances[::-1], axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return unit(centred @ (axes * (variances + SHRINKAGE * variances.mean()) ** (-gamma / 2))).astype(np.float32)


def fit(rows: np.ndarray, x: sp.csr_matrix, z: np.ndarray, lam: float, steps: int, report=lambda line: None) -> np.ndarray:
    """Returns F0 M + D, the least-squares fit of unit predictions to z. D is solved by conjugate gradients with the ridge `lam`."""
    length = np.linalg.norm(x @ rows, axis=1)
    x = (sp.diags((1 / np.maximum(length, 1e-6)).astype(np.float32)) @ x).tocsr()
    x = x[length > 1e-6]
    z = z[length > 1e-6]
    f = x @ rows
    gram = f.T.astype(np.float64) @ f
    m = np.linalg.solve(gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), f.T.astype(np.float64) @ z)
    base = (rows @ m).astype(np.float32)
    residual = z - f @ m.astype(np.float32)
    report(f"after M: {np.mean(np.sum(unit(f @ m) * z, 1)):.4f}")
    transposed = x.T.tocsr()

    def solve(columns: np.ndarray) -> np.ndarray:
        r = transposed @ np.ascontiguousarray(residual[:, columns])
        d, s = np.zeros_like(r), r.copy()
        rho = np.sum(r * r, 0)
        for _ in range(steps):
            q = transposed @ (x @ s) + lam * s
            alpha = rho / np.maximum(np.sum(s * q, 0), 1e-20)
            d += alpha * s
            r -= alpha * q
            rho, before = np.sum(r * r, 0), rho
            s = r + rho / np.maximum(before, 1e-20) * s
        return d

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(solve, np.array_split(np.arange(z.shape[1]), 4)))
    d = np.concatenate(parts, axis=1)
    report(f"after D: {np.mean(np.sum(unit(x @ (base + d)) * z, 1)):.4f}")
    return base + d


def int4(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers in -7..7 and one step per row. Of seven spans it takes the one with the least squared error, as
    crates/tuning/src/refine/write/quantize.rs does."""
    largest = np.abs(rows).max(1)
    best, steps, integers = np.full(len(rows), np.inf), np.zeros(len(rows), np.float32), np.zeros(rows.shape, np.int8)
    for share in np.linspace(1.0, 0.7, 7):
        step = (largest * share / 7).astype(np.float32)
        whole = np.clip(np.rint(rows / np.maximum(step, 1e-30)[:, None]), -7, 7)
        error = ((whole * step[:, None] - rows) ** 2).sum(1)
        better = error < best
        best[better], steps[better], integers[better] = error[better], step[better], whole[better]
    return integers, steps
