"""Singular values and leading singular vectors, from the Gram matrix of the smaller side.

The unfolding of a kernel is far from square: 512 x 4,608, or 4,096 x 25,088. Its Gram matrix is
small and costs one matrix product; its eigenvalues are the squared singular values. In float64 this
resolves singular values down to about 1e-8 of the largest, which is below the rounding error of
float32 weights.
"""

from dataclasses import dataclass

import numpy as np

# Number of columns that are converted to float64 at a time. This avoids a float64 copy of a large
# matrix.
_BLOCK_COLUMNS = 8192

# Squared errors below this share of the squared norm are rounding errors.
ROUNDING = 1e-14

# A row or column is dead if it is below this share of the largest: training switched this filter
# off.
_DEAD = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix, and its shape.

    Parameters
    ----------
    singular_values
        Shape (min(rows, columns),), descending, not negative.
    rows, columns
        Shape of the matrix without dead rows and columns.
    """

    singular_values: np.ndarray
    rows: int
    columns: int


def spectrum_of(matrix: np.ndarray) -> Spectrum:
    """Return the singular values of a matrix of any float type, shape (L, M), without dead rows.

    Filters that training switched off, because weight decay took them to zero, contain no
    information about the noise in the others. Their rows and columns are not counted.
    """
    rows, columns = _count_alive(matrix), _count_alive(matrix.T)
    wide_matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    eigenvalues = np.linalg.eigvalsh(_gram(wide_matrix))[::-1]
    # Rounding can make eigenvalues of a singular matrix slightly negative.
    singular_values = np.sqrt(np.maximum(eigenvalues[: min(rows, columns)], 0.0))
    return Spectrum(singular_values, rows, columns)


def leading_left_vectors(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Return orthonormal columns that span the `rank` leading left singular vectors.

    Parameters
    ----------
    matrix
        Shape (L, M).
    rank
        At most L. Above the rank of the matrix, arbitrary orthonormal vectors complete the basis.

    Returns
    -------
    np.ndarray
        Shape (L, rank), float64; each column's entry with the largest magnitude is positive.
    """
    rows, columns = matrix.shape
    if rows <= columns or rank > columns:
        return leading_eigenvectors(_gram(matrix), rank)
    right = leading_eigenvectors(_gram(matrix.T), rank)
    # (L, M) x (M, rank) -> (L, rank). QR avoids a division by singular values that may be 0.
    return with_fixed_signs(np.linalg.qr(matrix @ right)[0])


def truncated_svd(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best approximation of that rank as two factors that train at equal rates.

    The projection U (U^T W) is as accurate as the orthonormality of U; a division by small singular
    values would lose this accuracy. Each factor gets the square root of every singular value, so
    fine-tuning changes both at the same rate.

    Parameters
    ----------
    matrix
        Shape (L, M), float64.
    rank
        At most min(L, M).

    Returns
    -------
    tuple of np.ndarray
        Shapes (L, rank) and (rank, M).
    """
    left = leading_left_vectors(matrix, rank)
    right = left.T @ matrix  # (R, L) x (L, M) -> (R, M)
    singular_values = np.linalg.norm(right, axis=1)
    # A null direction keeps its unit vector on the left; if both sides were 0, neither would train.
    root = np.sqrt(np.where(singular_values > 0, singular_values, 1.0))
    right /= root[:, None]
    return left * root, right


def leading_eigenvectors(symmetric: np.ndarray, rank: int) -> np.ndarray:
    """Return the eigenvectors of the largest eigenvalues, shape (L, rank), with fixed signs."""
    return with_fixed_signs(np.linalg.eigh(symmetric)[1][:, ::-1][:, :rank])


def _gram(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix times its transpose, in float64: (L, M) x (M, L) -> (L, L)."""
    rows, columns = matrix.shape
    if matrix.dtype == np.float64:
        gram: np.ndarray = matrix @ matrix.T
        return gram
    total = np.zeros((rows, rows))
    for start in range(0, columns, _BLOCK_COLUMNS):
        block = matrix[:, start : start + _BLOCK_COLUMNS].astype(np.float64, copy=False)
        total += block @ block.T
    return total


def _count_alive(matrix: np.ndarray) -> int:
    """Return the number of rows that are not negligible compared with the largest one."""
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1)).astype(np.float64)
    return int(np.count_nonzero(largest > _DEAD * largest.max()))


def with_fixed_signs(vectors: np.ndarray) -> np.ndarray:
    """Make each column's entry with the largest magnitude positive; LAPACK leaves signs open."""
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.copysign(vectors.dtype.type(1), vectors[largest, np.arange(len(largest))])
    signed: np.ndarray = vectors * signs
    return signed
