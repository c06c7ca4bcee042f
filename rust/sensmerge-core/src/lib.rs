//! Merging of fine-tuned checkpoints, tensor by tensor, at the speed of the memory bus.
//!
//! This crate knows files, numbers and threads; it knows nothing of Python or torch. A whole
//! merge is three calls:
//!
//! 1. [`checkpoint::Checkpoint::open`] the models,
//! 2. [`manifest::Builder`] decides what every output tensor is made of, from their headers,
//! 3. [`engine::execute`] streams the inputs through the method's program and writes the model.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use sensmerge_core::checkpoint::Checkpoint;
//! use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
//! use sensmerge_core::manifest::{Builder, Input};
//!
//! let open = |path: &str| Checkpoint::open(Path::new(path)).map(Arc::new);
//! let (base, chat, math) = (open("base")?, open("chat")?, open("math")?);
//! let manifest = Builder::new("task_arithmetic")
//!     .base(Input::new(base.clone()))
//!     .model(Input::new(chat.clone()))
//!     .model(Input::new(math.clone()))
//!     .number("lambda", 0.5)
//!     .build()?;
//! let inputs = Inputs::of(&manifest, vec![base, chat, math])?;
//! execute(&manifest, &inputs, Path::new("merged"), &[], &[], &Options::default(), &Monitor::new())?;
//! # Ok::<(), sensmerge_core::Error>(())
//! ```
//!
//! Rooms and the arrows between them:
//!
//! ```text
//! engine ─▶ manifest ─▶ method ─▶ program ─▶ kernel ─▶ dtype
//!    │         └───────▶ checkpoint ─▶ dtype
//!    └─▶ program, kernel, checkpoint              everything ─▶ error, numbers
//! ```
//!
//! `kernel` and `checkpoint` never see each other.

pub mod checkpoint;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod manifest;
pub mod method;
mod numbers;
mod program;

// Open for the benchmark that counts their instructions; nothing else should call them.
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
pub mod processor;
#[doc(hidden)]
pub mod random;

pub use error::{Error, Result};
