//! `sensmerge._core`: the bindings of `sensmerge-core` for Python, one class or function per file. A
//! binding converts its arguments, releases the interpreter, makes one call and converts the result.
#![expect(clippy::doc_markdown, reason = "the documentation is Python's docstrings")]
#![expect(clippy::needless_pass_by_value, reason = "PyO3 hands converted arguments over")]

mod buffers;
mod checkpoint;
mod difference;
mod distance;
mod door;
mod error;
mod function;
mod manifest;
mod memory;
mod merge;
mod methods;
mod native;
mod output;
mod pickle_files;
mod pool;
mod prepared;
mod read;
mod register;
mod sensitivity;
mod shards;
mod task_vector;
mod units;
mod weight_files;

use pyo3::pymodule;

/// The compiled core of sensmerge.
#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::checkpoint::{Checkpoint, Quantised, TensorInfo};
    #[pymodule_export]
    use crate::difference::{Difference, differences};
    #[pymodule_export]
    use crate::distance::row_distances;
    #[pymodule_export]
    use crate::manifest::{Manifest, OutputTensor, Packing};
    #[pymodule_export]
    use crate::memory::merge_into;
    #[pymodule_export]
    use crate::merge::merge;
    #[pymodule_export]
    use crate::methods::methods;
    #[pymodule_export]
    use crate::output::{check_output, check_space};
    #[pymodule_export]
    use crate::pickle_files::pickle_files;
    #[pymodule_export]
    use crate::prepared::Prepared;
    #[pymodule_export]
    use crate::read::read_into;
    #[pymodule_export]
    use crate::register::{register_function, register_native};
    #[pymodule_export]
    use crate::sensitivity::{sum_abs_product, sum_squares};
    #[pymodule_export]
    use crate::shards::merge_shards;
    #[pymodule_export]
    use crate::task_vector::task_vector;
    #[pymodule_export]
    use crate::units::match_units;
    #[pymodule_export]
    use crate::weight_files::weight_files;
}
