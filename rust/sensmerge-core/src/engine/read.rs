//! Tensors of one model as they enter a merge, for running models whose weights are not stored as such.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::entries::Entries;
use super::{DEFAULT_CHUNK_BYTES, Inputs, Monitor, pool};
use crate::checkpoint::Checkpoint;
use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::manifest::View;
use crate::program::block::BLOCK;

/// Write tensors of a view into memory, by the names of its stored tensors, each rounded once to the
/// dtype that it is stored in. `buffers` holds a buffer of exactly its size in bytes for each.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that the view lacks or that is not computed with,
/// [`Error::Setting`] for a buffer of another size, [`Error::Interrupted`].
pub fn read_into(
    view: &View,
    buffers: BTreeMap<String, &mut [u8]>,
    threads: Option<usize>,
    monitor: &Monitor,
) -> Result<()> {
    let checkpoints: Vec<Arc<Checkpoint>> = view.checkpoints().map(Arc::clone).collect();
    let inputs = Inputs::new(checkpoints.clone());
    pool(threads)?.install(|| {
        for (name, buffer) in buffers {
            let (source, dtype) = view.source(&name, &checkpoints)?;
            let elements: usize = source.shape().iter().product();
            let (needed, found) = (elements * dtype.size(), buffer.len());
            if needed != found {
                let reason = format!("its buffer has {found} bytes where it needs {needed}");
                return Err(Error::setting(&name, reason));
            }
            let entries = Entries::of(&source, &inputs)?;
            if source.dtype() == Some(Float::F64) {
                read::<f64>(&entries, dtype, buffer, monitor)?;
            } else {
                read::<f32>(&entries, dtype, buffer, monitor)?;
            }
        }
        Ok(())
    })
}

fn read<T: Real>(
    entries: &Entries,
    dtype: Float,
    buffer: &mut [u8],
    monitor: &Monitor,
) -> Result<()> {
    entries.prepare::<T>();
    let size = dtype.size();
    let chunk = DEFAULT_CHUNK_BYTES / size_of::<T>();
    buffer.par_chunks_mut(chunk * size).enumerate().try_for_each(|(place, bytes)| {
        monitor.check()?;
        let mut wide = [T::ZERO; BLOCK];
        for (block, bytes) in bytes.chunks_mut(BLOCK * size).enumerate() {
            let start = place * chunk + block * BLOCK;
            let wide = &mut wide[..bytes.len() / size];
            entries.read(start..start + wide.len(), wide);
            T::narrow(wide, dtype, bytes);
        }
        Ok(())
    })
}
