//! Merging of fine-tuned checkpoints, tensor by tensor, at the speed of the memory bus.
//!
//! This crate knows files, numbers and threads; it knows nothing of Python or torch. A whole
//! merge is three calls:
//!
//! 1. fill a [`plan::Recipe`] (method, models, weights),
//! 2. [`plan::Plan::new`] reads the headers and decides what every output tensor is made of,
//! 3. [`execute::execute`] maps the inputs, streams chunks through the kernels and writes shards.
//!
//! Rooms and the arrows between them: `execute -> {plan -> {method -> kernel -> {dtype, random},
//! checkpoint -> dtype}}`; everything may use `error`. `kernel` and `checkpoint` never see each
//! other.

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod execute;
pub mod kernel;
pub mod method;
pub mod plan;
pub mod processor;
pub mod random;

pub use error::{Error, Result};
