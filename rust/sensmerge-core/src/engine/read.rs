//! Tensors of one model, read into memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Inputs, Monitor, Options, execute_into};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::manifest::{Builder, View};
use crate::method::IDENTITY;

/// Read tensors of a checkpoint, quantised ones as what they stand for. `buffers` holds, by name, one
/// buffer for every tensor that is read, of exactly its size in bytes; entries are little-endian, of the
/// dtype that [`Checkpoint::get`] says, to which those of quantised tensors are rounded once.
///
/// # Errors
/// [`Error::Setting`](crate::Error::Setting) for a buffer of another size, or without a tensor;
/// [`Error::Interrupted`](crate::Error::Interrupted).
pub fn read_into(
    checkpoint: &Arc<Checkpoint>,
    buffers: BTreeMap<String, &mut [u8]>,
    threads: Option<usize>,
    monitor: &Monitor,
) -> Result<()> {
    let names = buffers.keys().map(|name| (name.clone(), name.clone())).collect();
    let view = View::new(Arc::clone(checkpoint)).names(names);
    let manifest = Builder::new(IDENTITY).model(view).dequantised().build()?;
    let inputs = Inputs::of(&manifest, vec![Arc::clone(checkpoint)])?;
    let options = Options { threads, allow_nan: true, ..Options::default() };
    execute_into(&manifest, &inputs, buffers, &options, monitor).map(drop)
}
