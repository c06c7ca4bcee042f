//! Linear algebra of whole matrices in float64, by faer, on the calling thread alone.
//!
//! Results do not depend on threads: every call is single-threaded, and all matrices are allocated by
//! faer, aligned alike. They may depend on the processor in their last bits: faer takes the widest
//! vectors that the processor has, fuses multiplications with additions, and cuts products to fit the
//! caches.

pub(crate) mod assignment;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Mat, MatMut, MatRef, Par, Spec};

/// A singular value that is not above this part of the largest one counts as 0: its vectors are made of
/// rounding errors. Differences of float64 entries whose low-rank part is a thousandth of them have
/// rounding errors of about 1e-12.
pub(crate) const TOLERANCE: f64 = 1e-10;

/// The same for the eigenvalues of a Gram matrix, which are squares of singular values and known to about
/// 1e-16 times its size.
const EIGEN_TOLERANCE: f64 = 1e-12;

/// A matrix of float64, row after row.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    /// The transposed matrix: faer stores columns.
    transposed: Mat<f64>,
}

/// `U · diag(s) · Vᵀ`, the largest singular values first, without those that count as 0.
#[derive(Debug)]
pub(crate) struct Singular {
    /// The left singular vectors, `[rows, min(rows, columns)]`; the first `values.len()` count.
    left: Mat<f64>,
    /// The singular values that do not count as 0.
    pub(crate) values: Vec<f64>,
    /// The right singular vectors, `[columns, min(rows, columns)]`; the first `values.len()` count.
    right: Mat<f64>,
}

/// Singular vectors of several matrices, side by side.
#[derive(Debug)]
pub(crate) struct Vectors {
    columns: Mat<f64>,
    used: usize,
}

impl Matrix {
    /// A matrix of zeros.
    #[must_use]
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        Self { transposed: Mat::zeros(columns, rows) }
    }

    /// Number of rows.
    #[must_use]
    pub(crate) fn rows(&self) -> usize {
        self.transposed.ncols()
    }

    /// Number of columns.
    #[must_use]
    pub(crate) fn columns(&self) -> usize {
        self.transposed.nrows()
    }

    /// A row.
    #[must_use]
    pub(crate) fn row(&self, row: usize) -> &[f64] {
        self.transposed.col_as_slice(row)
    }

    /// A row, to be changed.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        self.transposed.col_as_slice_mut(row)
    }

    /// Multiply every entry by a number.
    pub(crate) fn scale(&mut self, factor: f64) {
        for row in 0..self.rows() {
            self.row_mut(row).iter_mut().for_each(|entry| *entry *= factor);
        }
    }

    /// Add another matrix of the same shape, multiplied by a number.
    pub(crate) fn add(&mut self, factor: f64, other: &Self) {
        for row in 0..self.rows() {
            let entries = self.row_mut(row).iter_mut().zip(other.row(row));
            entries.for_each(|(entry, other)| *entry += factor * other);
        }
    }

    /// Multiply every entry off the diagonal by a number.
    pub(crate) fn scale_off_diagonal(&mut self, factor: f64) {
        for row in 0..self.rows() {
            let entries = self.row_mut(row).iter_mut().enumerate();
            entries.filter(|(column, _)| *column != row).for_each(|(_, entry)| *entry *= factor);
        }
    }

    /// The sum of the squares of all entries, row by row.
    #[must_use]
    pub(crate) fn sum_of_squares(&self) -> f64 {
        (0..self.rows()).map(|row| self.row(row).iter().map(|x| x * x).sum::<f64>()).sum()
    }

    fn view(&self) -> MatRef<'_, f64> {
        self.transposed.as_ref().transpose()
    }

    fn view_mut(&mut self) -> MatMut<'_, f64> {
        self.transposed.as_mut().transpose_mut()
    }

    /// `self += factor · leftᵀ · left`.
    pub(crate) fn add_gram(&mut self, factor: f64, left: &Self) {
        let (a, b) = (left.view().transpose(), left.view());
        matmul(self.view_mut(), Accum::Add, a, b, factor, Par::Seq);
    }

    /// `self += factor · left · right`.
    pub(crate) fn add_product(&mut self, factor: f64, left: &Self, right: &Self) {
        matmul(self.view_mut(), Accum::Add, left.view(), right.view(), factor, Par::Seq);
    }

    /// `self += left · rightᵀ`.
    pub(crate) fn add_products(&mut self, left: &Self, right: &Self) {
        matmul(self.view_mut(), Accum::Add, left.view(), right.view().transpose(), 1.0, Par::Seq);
    }

    /// `self += factor · M · Mᵀ · M`. The smaller one of the two products is made first.
    pub(crate) fn add_cube(&mut self, factor: f64, of: &Self) {
        let of = of.view();
        let (rows, columns) = of.shape();
        let size = rows.min(columns);
        let mut gram = Mat::zeros(size, size);
        let (first, second) =
            if rows < columns { (of, of.transpose()) } else { (of.transpose(), of) };
        matmul(gram.as_mut(), Accum::Replace, first, second, 1.0, Par::Seq);
        let (first, second) =
            if rows < columns { (gram.as_ref(), of) } else { (of, gram.as_ref()) };
        matmul(self.view_mut(), Accum::Add, first, second, factor, Par::Seq);
    }

    /// The sum of the diagonal.
    #[must_use]
    pub(crate) fn trace(&self) -> f64 {
        (0..self.rows()).map(|place| self.row(place)[place]).sum()
    }

    /// Add a number to every entry of the diagonal.
    pub(crate) fn add_to_diagonal(&mut self, number: f64) {
        for place in 0..self.rows() {
            self.row_mut(place)[place] += number;
        }
    }

    /// `self · A⁻¹` for a symmetric positive definite `A`, which is used up; `None` if it is not
    /// positive definite in float64.
    #[must_use]
    pub(crate) fn times_inverse(mut self, mut a: Self) -> Option<Self> {
        let (size, rows) = (a.rows(), self.rows());
        let need = llt::factor::cholesky_in_place_scratch::<f64>(size, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(need.or(llt::solve::solve_in_place_scratch::<f64>(
            size,
            rows,
            Par::Seq,
        )));
        let stack = MemStack::new(&mut memory);
        let none = llt::factor::LltRegularization::default();
        llt::factor::cholesky_in_place(
            a.transposed.as_mut(),
            none,
            Par::Seq,
            stack,
            Spec::default(),
        )
        .ok()?;
        // X A = B is A Xᵀ = Bᵀ.
        let (factor, right) = (a.transposed.as_ref(), self.transposed.as_mut());
        llt::solve::solve_in_place(factor, right, Par::Seq, stack);
        Some(self)
    }

    /// `self · A⁺` with the pseudo-inverse of a symmetric `A`: eigenvalues that are not above
    /// [`EIGEN_TOLERANCE`] of the largest count as 0. `None` if the decomposition does not converge.
    #[must_use]
    pub(crate) fn times_pseudo_inverse(mut self, a: &Self) -> Option<Self> {
        let size = a.rows();
        let (mut vectors, mut values) = (Mat::zeros(size, size), Diag::zeros(size));
        let mut memory = MemBuffer::new(evd::self_adjoint_evd_scratch::<f64>(
            size,
            ComputeEigenvectors::Yes,
            Par::Seq,
            Spec::default(),
        ));
        evd::self_adjoint_evd(
            a.view(),
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut memory),
            Spec::default(),
        )
        .ok()?;
        drop(memory);
        let values: Vec<f64> = values.column_vector().iter().copied().collect();
        let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let least = largest * EIGEN_TOLERANCE;
        let mut turned = Mat::zeros(self.rows(), size);
        matmul(turned.as_mut(), Accum::Replace, self.view(), vectors.as_ref(), 1.0, Par::Seq);
        for (column, &value) in values.iter().enumerate() {
            let factor = if value > least { 1.0 / value } else { 0.0 };
            turned.col_as_slice_mut(column).iter_mut().for_each(|entry| *entry *= factor);
        }
        let back = vectors.transpose();
        matmul(self.view_mut(), Accum::Replace, turned.as_ref(), back, 1.0, Par::Seq);
        Some(self)
    }

    /// Its singular values and vectors; `None` if the decomposition does not converge. What counts as 0
    /// is compared with `scale` where that is more than the largest: the size of what the matrix is a
    /// difference of.
    #[must_use]
    pub(crate) fn singular(&self, scale: f64) -> Option<Singular> {
        singular(self.view(), scale)
    }

    /// `self −= U Uᵀ self` for the first `count` columns of `left`.
    pub(crate) fn remove(&mut self, left: &Singular, count: usize) {
        let left = left.left.as_ref().subcols(0, count.min(left.values.len()));
        let mut inside = Mat::zeros(left.ncols(), self.columns());
        matmul(inside.as_mut(), Accum::Replace, left.transpose(), self.view(), 1.0, Par::Seq);
        matmul(self.view_mut(), Accum::Add, left, inside.as_ref(), -1.0, Par::Seq);
    }

    /// `left · diag(values) · rightᵀ` for the columns that are used.
    #[must_use]
    pub(crate) fn product(left: &Vectors, values: &[f64], mut right: Vectors) -> Self {
        for (column, value) in values.iter().enumerate() {
            right.columns.col_as_slice_mut(column).iter_mut().for_each(|entry| *entry *= value);
        }
        let mut product = Self::zeros(left.columns.nrows(), right.columns.nrows());
        let (left, right) = (left.view(), right.view());
        matmul(product.view_mut(), Accum::Replace, left, right.transpose(), 1.0, Par::Seq);
        product
    }
}

impl Singular {
    /// `value · U Vᵀ` for the vectors of the values that do not count as 0.
    #[must_use]
    pub(crate) fn isotropic(&self, value: f64) -> Matrix {
        let count = self.values.len();
        let mut product = Matrix::zeros(self.left.nrows(), self.right.nrows());
        let (left, right) = (self.left.as_ref(), self.right.as_ref());
        let (left, right) = (left.subcols(0, count), right.subcols(0, count));
        matmul(product.view_mut(), Accum::Replace, left, right.transpose(), value, Par::Seq);
        product
    }

    /// Add its first `count` left and right vectors to others, as many as do not count as 0.
    pub(crate) fn append_to(&self, left: &mut Vectors, right: &mut Vectors, count: usize) {
        let count = count.min(self.values.len());
        left.append(&self.left, count);
        right.append(&self.right, count);
    }
}

impl Vectors {
    /// Room for `count` vectors of a length.
    #[must_use]
    pub(crate) fn new(length: usize, count: usize) -> Self {
        Self { columns: Mat::zeros(length, count), used: 0 }
    }

    fn view(&self) -> MatRef<'_, f64> {
        self.columns.as_ref().subcols(0, self.used)
    }

    fn append(&mut self, from: &Mat<f64>, count: usize) {
        for column in 0..count {
            let place = self.used + column;
            self.columns.col_as_slice_mut(place).copy_from_slice(from.col_as_slice(column));
        }
        self.used += count;
    }

    /// The nearest matrix with orthonormal columns: `P Qᵀ` for `P D Qᵀ`. Where the columns depend on
    /// each other, only the directions that they have. `None` if the decomposition does not converge.
    #[must_use]
    pub(crate) fn orthogonalised(mut self) -> Option<Self> {
        if self.used == 0 {
            return Some(self);
        }
        let found = singular(self.view(), 0.0)?;
        let count = found.values.len();
        let (left, right) = (found.left.as_ref(), found.right.as_ref());
        let (left, right) = (left.subcols(0, count), right.subcols(0, count));
        let used = self.used;
        let columns = self.columns.as_mut().subcols_mut(0, used);
        matmul(columns, Accum::Replace, left, right.transpose(), 1.0, Par::Seq);
        Some(self)
    }
}

fn singular(matrix: MatRef<f64>, scale: f64) -> Option<Singular> {
    let (rows, columns) = matrix.shape();
    let size = rows.min(columns);
    let (mut left, mut right) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
    let mut values = Diag::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let need = svd::svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(need);
    svd::svd(
        matrix,
        values.as_mut(),
        Some(left.as_mut()),
        Some(right.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    let mut values: Vec<f64> = values.column_vector().iter().copied().collect();
    let least = values.first().map_or(0.0, |largest| largest.max(scale) * TOLERANCE);
    values.truncate(values.iter().take_while(|value| **value > least).count());
    Some(Singular { left, values, right })
}

/// Bytes of a matrix.
#[must_use]
pub(crate) fn matrix_bytes(rows: usize, columns: usize) -> u64 {
    8 * rows as u64 * columns as u64
}

/// Bytes that singular values and vectors of a matrix and their computation need, without the matrix.
#[must_use]
pub(crate) fn singular_bytes(rows: usize, columns: usize) -> u64 {
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd::svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Spec::default());
    let size = rows.min(columns);
    scratch.unaligned_bytes_required() as u64
        + matrix_bytes(rows, size)
        + matrix_bytes(columns, size)
}

/// Bytes that the eigenvectors of a symmetric matrix and their computation need, without the matrix.
#[must_use]
pub(crate) fn eigen_bytes(size: usize) -> u64 {
    let yes = ComputeEigenvectors::Yes;
    let scratch = evd::self_adjoint_evd_scratch::<f64>(size, yes, Par::Seq, Spec::default());
    scratch.unaligned_bytes_required() as u64 + matrix_bytes(size, size)
}
