//! Merging of fine-tuned LLM checkpoints, tensor by tensor.
//!
//! This crate handles files, numbers and threads; it uses neither Python nor torch. A merge has
//! three steps:
//!
//! 1. [`checkpoint::Checkpoint::open`] opens the models,
//! 2. [`manifest::Builder`] lists every output tensor with its inputs and its numbers, from the
//!    models' headers,
//! 3. [`engine::execute`] reads the inputs, computes the method's program and writes the model.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use sensmerge_core::checkpoint::Checkpoint;
//! use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
//! use sensmerge_core::manifest::{Builder, View};
//!
//! let open = |path: &str| Checkpoint::open(Path::new(path)).map(Arc::new);
//! let (base, chat, math) = (open("base")?, open("chat")?, open("math")?);
//! let manifest = Builder::new("task_arithmetic")
//!     .base(View::new(base.clone()))
//!     .model(View::new(chat.clone()))
//!     .model(View::new(math.clone()))
//!     .number("lambda", 0.5)
//!     .build()?;
//! let inputs = Inputs::of(&manifest, vec![base, chat, math])?;
//! execute(&manifest, &inputs, Path::new("merged"), &[], &[], &Options::default(), &Monitor::new())?;
//! # Ok::<(), sensmerge_core::Error>(())
//! ```
//!
//! The rooms, and which of them use which:
//!
//! ```text
//! engine ─▶ manifest ─▶ method ─▶ program ─▶ kernel ─▶ dtype ─▶ processor
//!    │         │                     └────▶ random ─▶ processor
//!    │         └─▶ checkpoint ─▶ dtype
//!    └─▶ all of these
//! engine, manifest, program ─▶ numbers
//! engine, program ─▶ linear
//! engine, manifest, method, checkpoint, program ─▶ error
//! ```
//!
//! `kernel` and `checkpoint` never use each other.

pub mod checkpoint;
pub mod dtype;
pub mod engine;
pub mod error;
mod linear;
pub mod manifest;
pub mod method;
mod numbers;
mod program;

// Public only for `benches/instructions`, which counts their instructions.
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
pub mod processor;
#[doc(hidden)]
pub mod random;

pub use error::{Error, Result};
